"""The data: from raw files to Parquet, schema, splits and fingerprint, and from there to tensors. Knows no models.

A source is a function `load(config) -> Raw` whose parameter is annotated with its Config, and one line here.
"""

SOURCES = {
    "digits": "pipelines.sources.digits:load",
    "idx": "pipelines.sources.idx:load",
    "images": "pipelines.sources.images:load",
    "table": "pipelines.sources.table:load",
}
