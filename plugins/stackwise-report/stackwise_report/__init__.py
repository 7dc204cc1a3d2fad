"""A run of Stackwise, or several side by side, as one page to look at."""
