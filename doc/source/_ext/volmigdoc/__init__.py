"""Reference pages made from volmig's own code; only :mod:`volmigdoc.extension` needs Sphinx."""
