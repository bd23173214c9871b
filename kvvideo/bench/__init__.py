"""Measurements. Speed is reported as ratios inside one run, with the machine described."""
