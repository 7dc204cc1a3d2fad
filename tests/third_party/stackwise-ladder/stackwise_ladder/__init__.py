"""A trainer mode that is in no package of ours."""
