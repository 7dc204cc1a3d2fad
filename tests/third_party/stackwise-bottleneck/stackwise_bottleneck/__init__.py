"""An adapter that is in no package of ours."""
