"""Plans: phases as the engine executes them, checked and priced."""
