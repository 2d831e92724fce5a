"""What happened: the ledger, MLflow, provenance."""
