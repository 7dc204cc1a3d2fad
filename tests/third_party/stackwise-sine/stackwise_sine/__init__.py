"""A mask schedule that is in no package of ours."""
