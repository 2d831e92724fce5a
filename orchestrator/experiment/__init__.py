"""What is asked: the experiment file, the search space, the plan. No torch, no Ray, no MLflow."""
