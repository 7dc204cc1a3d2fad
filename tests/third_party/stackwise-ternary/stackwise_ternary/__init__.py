"""A packed precision that is in no package of ours."""
