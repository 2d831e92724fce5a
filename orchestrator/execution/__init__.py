"""Where trials run: the search, the executors, the driving loop. The only folder besides cluster/ that imports Ray."""
