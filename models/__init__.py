"""Networks, in pure PyTorch: no Ray, no MLflow, no files. A family is one module and one line here."""

FAMILIES = {"cnn": "models.cnn:CNN"}
