"""The data: from raw files to Parquet, schema, splits and fingerprint, and from there to tensors. Knows no models.

A source is a function `load(config) -> Raw` whose parameter is annotated with its Config, and one line here.
"""

SOURCES = {
    "audio": "pipelines.sources.audio:load",
    "digits": "pipelines.sources.digits:load",
    "hmm": "pipelines.sources.hmm:load",
    "idx": "pipelines.sources.idx:load",
    "images": "pipelines.sources.images:load",
    "masks": "pipelines.sources.masks:load",
    "shapes": "pipelines.sources.shapes:load",
    "table": "pipelines.sources.table:load",
    "text": "pipelines.sources.text:load",
    "synthetic_ranking": "pipelines.sources.synthetic:ranking",
    "synthetic_ratings": "pipelines.sources.synthetic:ratings",
    "interactions": "pipelines.sources.interactions:load",
}
