"""What commands say on a terminal stays short enough to read."""

from __future__ import annotations

from orchestrator.cli import output


def test_of_many_scores_a_line_shows_the_losses_the_first_ones_and_how_many_more_there_are() -> None:
    ranked = {f"val_{name}_at_{k}": 0.5 for k in (10, 5, 1) for name in ("hr", "ndcg", "recall")}
    said = output.scores({"train_loss": 1.0, **ranked, "val_loss": 2.0, "samples_per_s": 9.0})
    assert said.startswith("train_loss 1.0000  val_loss 2.0000  val_hr_at_10 0.5000  val_ndcg_at_10 0.5000  val_recall_at_10 0.5000")
    assert said.endswith("  ... 5 more")
    assert len(said.split("  ")) == output.SCORES + 1


def test_a_few_scores_are_all_shown() -> None:
    assert output.scores({"train_loss": 1.0, "val_loss": 2.0, "val_rmse": 0.5}) == "train_loss 1.0000  val_loss 2.0000  val_rmse 0.5000"
