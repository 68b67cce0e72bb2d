"""Runs trials: the loop around the study, in this process or on Ray Tune's workers."""
