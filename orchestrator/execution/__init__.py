"""Where trials run: the search, the executors, the driving loop. The only folder besides cluster/ that imports Ray."""


def set_up_worker() -> None:
    """Runs first in every Ray worker, so it must cost nothing. Importing this package binds `models`, `pipelines` and `cluster` to ours."""
