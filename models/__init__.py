"""Networks, in pure PyTorch: no Ray, no MLflow, no files. A family is one module and one line here."""

FAMILIES = {
    "cnn": "models.cnn:CNN",
    "lstm": "models.lstm:LSTM",
    "lstm-regression": "models.lstm:LSTMRegression",
    "unet": "models.unet:UNet",
    "ranker": "models.recommender:Ranker",
    "recommender": "models.recommender:Recommender",
}
