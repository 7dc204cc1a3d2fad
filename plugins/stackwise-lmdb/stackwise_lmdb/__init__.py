"""A boundary cache for Stackwise in an LMDB environment."""
