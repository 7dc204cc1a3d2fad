"""Text files and data sets as corpora of Stackwise."""
