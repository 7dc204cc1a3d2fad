"""Evaluation: the bound by depth and band, of a rack in training or finished."""
