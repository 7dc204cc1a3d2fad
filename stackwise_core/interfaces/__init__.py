"""The contracts: one file a hook, and the records that cross them. Nothing here imports torch when it is run."""
