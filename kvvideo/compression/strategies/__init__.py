"""One strategy, one module: ``value_norm.py`` holds the ``Policy`` selected by ``value-norm``."""
