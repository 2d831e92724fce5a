"""The best items for each user of a table: what is left out, who is answered by what, and requests that can't be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from models.recommender import Ranker, Recommender
from orchestrator.deployment import predict as predicting
from orchestrator.deployment import top_k as recommending
from orchestrator.deployment.bundle import Bundle
from orchestrator.errors import Refused
from pipelines.encode import Encoder
from pipelines.encode.features import WordsEncoder
from pipelines.encode.ids import IdEncoder
from pipelines.prepare import prepare
from pipelines.schema import Column, Schema
from pipelines.sources.interactions import Config, load
from pipelines.splits import SplitConfig

FRUIT, DAIRY = ["apple", "banana", "cherry"], ["milk", "cheese", "butter"]
PARTS = {  # ratings of users, best first; milk and cheese are the most popular
    "train": {"ann": ["apple"], "bob": ["milk", "cheese"], "carl": ["milk", "cheese", "butter"], "dan": ["milk", "banana", "cherry"]},
    "validation": {"ann": ["banana"]},
    "test": {"ann": ["cherry"]},
}
REGIONS = {"ann": "north", "bob": "south", "carl": "south", "dan": "north", "eve": "south"}  # of eve nothing else is known
TASTES = {"ann": (2.0, 0.5), "bob": (0.0, 1.0), "carl": (0.5, 1.0), "dan": (1.0, 1.0), "north": (1.0, 0.0), "south": (0.0, 1.0)}

Ask = Callable[..., list[dict[str, Any]]]


def made_bundle(folder: Path, rated: bool) -> Bundle:
    """A network whose users and items have a taste for fruit and one for dairy products, and no biases."""
    folder.mkdir()
    for part, users in PARTS.items():
        rows = [(user, item, 5 - place) for user, items in users.items() for place, item in enumerate(items)]
        columns = {"user": [row[0] for row in rows], "item": [row[1] for row in rows]}
        pq.write_table(pa.table(columns | ({"rating": [row[2] for row in rows]} if rated else {})), folder / f"{part}.parquet")
    pq.write_table(pa.table({"user": list(REGIONS), "region": list(REGIONS.values())}), folder / "people.parquet")
    config = Config(str(folder), user_features="people.parquet")
    prepared = prepare("interactions", load, config, SplitConfig(), folder / "cache")
    cls: Any = Recommender if rated else Ranker
    family = cls(cls.Config(dim=2), prepared.schema)
    family.bind(prepared.tables())
    items = {item: (1 - place / 10, 0.0) for place, item in enumerate(FRUIT)} | {i: (0.0, 1 - p / 10) for p, i in enumerate(DAIRY)}
    words = prepared.encoder.columns["region"].words
    with torch.no_grad():
        for parameter in family.parameters():
            parameter.zero_()
        for name, entity, vectors in (("user", family.users, TASTES), ("item", family.items, items)):
            codes = prepared.encoder.columns[name].codes(pa.chunked_array([list(vectors)]))
            entity.ids.weight[torch.from_numpy(codes), :2] = torch.tensor(list(vectors.values()))
            entity.ids.weight[0] = 0
        for place, word in enumerate(words):
            family.users.features.weight[place + 1, :2] = torch.tensor(TASTES[word])
    family.eval()
    return Bundle(folder, family, prepared.encoder, {"family": "recommender" if rated else "ranker"})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return made_bundle(tmp_path_factory.mktemp("ranking") / "data", rated=False)


@pytest.fixture
def ask(bundle: Bundle, tmp_path: Path) -> Ask:
    """`ask({"user": [...]}, k=2)`: the rows that come out."""

    def asked(columns: dict[str, Any], k: int = 2, of: Bundle = bundle) -> list[dict[str, Any]]:
        pq.write_table(pa.table(columns), tmp_path / "in.parquet")
        table = pa.table(columns)
        assert recommending.top_k(of, tmp_path / "in.parquet", tmp_path / "out.parquet", k)[0] <= table.num_rows
        return pq.read_table(tmp_path / "out.parquet").to_pylist()  # type: ignore[no-any-return]

    return asked


def items(rows: list[dict[str, Any]]) -> list[list[str]]:
    return [row["items"] for row in rows]


def test_each_user_gets_the_best_items_of_those_that_no_part_of_the_data_says_they_had(ask: Ask) -> None:
    rows = ask({"user": ["bob", "ann"]}, k=3)
    assert [row["user"] for row in rows] == ["bob", "ann"]
    assert items(rows) == [["butter", *_some(rows[0], 2)], DAIRY]
    assert rows[1]["scores"] == pytest.approx([0.5, 0.45, 0.4])
    assert {row["answered_by"] for row in rows} == {"model"}
    assert {row["error"] for row in rows} == {None}


def _some(row: dict[str, Any], count: int) -> list[str]:
    """The last items of a row, which are as good as each other."""
    last: list[str] = row["items"][-count:]
    assert set(last) <= set(FRUIT)
    return last


def test_a_user_of_whom_only_features_are_known_is_answered_by_these(ask: Ask) -> None:
    row = ask({"user": ["eve"]})[0]
    assert (row["items"], row["answered_by"]) == (["milk", "cheese"], "features")
    assert row["scores"] == pytest.approx([1.0, 0.9])


def test_an_unknown_user_is_answered_by_the_request_s_features_then_by_its_items_then_by_popularity(ask: Ask) -> None:
    columns = {"user": ["new", "newer", "newest", "nobody"], "region": ["north", None, "moon", None]}
    columns |= {"history": [["milk"], ["apple"], ["butter", "never seen"], ["never seen"]]}
    rows = ask(columns)
    assert [row["answered_by"] for row in rows] == ["features", "items", "items", "popularity"]
    assert items(rows) == [["apple", "banana"], ["banana", "cherry"], ["milk", "cheese"], ["milk", "cheese"]]
    assert list(rows[0]) == ["user", "items", "scores", "answered_by", "error"], "what the model takes is left out"


def test_without_any_hint_unknown_users_get_what_is_popular(ask: Ask) -> None:
    rows = ask({"user": ["new", "ann"]})
    assert (rows[0]["items"], rows[0]["answered_by"]) == (["milk", "cheese"], "popularity")
    assert rows[1]["answered_by"] == "model"


def test_items_that_the_request_lists_are_left_out_for_known_users_too(ask: Ask) -> None:
    rows = ask({"user": ["ann", "bob", "new"], "history": [["milk"], [], ["apple", "banana", "cherry"]]}, k=1)
    assert items(rows) == [["cheese"], ["butter"], rows[2]["items"]]
    assert not set(rows[2]["items"]) & set(FRUIT)


@pytest.mark.parametrize("form", ["rows", "lists", "both"])
def test_rows_of_a_user_become_one_and_their_items_its_list(ask: Ask, form: str) -> None:
    if form == "rows":
        given: dict[str, Any] = {"user": ["new", "ann", "new", "ann"], "item": ["apple", "milk", "banana", None], "note": [1, 2, 3, 4]}
    elif form == "lists":
        given = {"user": ["new", "ann"], "item": [["apple", "banana"], ["milk"]], "note": [1, 2]}
    else:
        given = {"user": ["new", "ann", "new"], "item": ["apple", "milk", None], "history": [[], None, ["banana"]], "note": [1, 2, 3]}
    rows = ask(given, k=1)
    assert [(row["user"], row["note"]) for row in rows] == [("new", 1), ("ann", 2)]
    assert items(rows) == [["cherry"], ["cheese"]]
    assert [row["answered_by"] for row in rows] == ["items", "model"]


def test_more_items_than_there_are_left_gives_all_that_are_left(ask: Ask) -> None:
    rows = ask({"user": ["ann", "new"], "history": [[], [*FRUIT, *DAIRY]]}, k=100)
    assert items(rows) == [DAIRY, []]
    assert [len(row["scores"]) for row in rows] == [3, 0]


def test_a_row_without_a_user_has_an_error_and_no_items(ask: Ask) -> None:
    rows = ask({"user": [None, "ann", None]}, k=1)
    assert [row["error"] for row in rows] == ["user: it is missing", None, "user: it is missing"]
    assert items(rows) == [None, ["milk"], None]
    assert [row["answered_by"] for row in rows] == [None, "model", None]


def test_many_users_in_small_blocks_get_what_each_gets_alone(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    users = ["ann", "new", "bob", "eve", "carl", "dan"] * 3
    given = {"user": [f"{name}{place if name == 'new' else ''}" for place, name in enumerate(users)]}
    given["history"] = [FRUIT[: place % 3] for place in range(len(users))]
    whole = ask(given)
    for name, value in {"BLOCK_SCORES": 12, "CHUNK": 4, "BLOCK_ITEMS": 3}.items():
        monkeypatch.setattr(recommending, name, value)
    assert ask(given) == whole
    assert [row["user"] for row in whole] == list(dict.fromkeys(given["user"]))


@pytest.mark.parametrize("text", ["user,item\nnew,apple\nann,milk\nnew,banana\n", "user,history\nnew,apple|banana\nann,milk\n"])
def test_a_csv_names_items_in_rows_or_with_a_bar_between_them(bundle: Bundle, tmp_path: Path, text: str) -> None:
    (tmp_path / "users.csv").write_text(text)
    assert recommending.top_k(bundle, tmp_path / "users.csv", tmp_path / "out.parquet", 1) == (2, 0)
    assert items(pq.read_table(tmp_path / "out.parquet").to_pylist()) == [["cherry"], ["cheese"]]


@pytest.mark.parametrize(
    "history", [[["apple", "banana"], None], ["apple|banana", None], pa.array(["apple|banana", ""], pa.large_string())]
)
def test_a_history_is_understood_in_a_prediction_of_pairs_too(bundle: Bundle, tmp_path: Path, history: Any) -> None:
    pq.write_table(pa.table({"user": ["new", "newer"], "item": ["cherry", "cherry"], "history": history}), tmp_path / "pairs.parquet")
    predicting.predict(bundle, tmp_path / "pairs.parquet", tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet")["answered_by"].to_pylist() == ["items", "popularity"]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"user": [["ann"]]}, "column 'user' holds list<"),
        ({"user": [b"\xff"]}, "column 'user' holds binary"),
        ({"user": ["ann"], "history": [[["milk"]]]}, "column 'history' holds list<"),
        ({"user": ["ann"], "history": [{"a": 1}]}, "column 'history' holds struct<"),
        ({"user": ["ann"], "region": [[["north"]]]}, "column 'region' holds list<"),
    ],
)
def test_columns_of_types_that_do_not_fit_are_one_line(bundle: Bundle, tmp_path: Path, columns: dict[str, Any], says: str) -> None:
    pq.write_table(pa.table(columns | {"item": ["milk"]}), tmp_path / "in.parquet")
    for asked in (lambda *paths: recommending.top_k(bundle, *paths, 2), lambda *paths: predicting.predict(bundle, *paths)):
        with pytest.raises(Refused, match=says):
            asked(tmp_path / "in.parquet", tmp_path / "out.parquet")


def test_users_that_are_nan_are_missing(ask: Ask) -> None:
    rows = ask({"user": [float("nan"), 7.0, float("nan")]}, k=1)
    assert [row["error"] for row in rows] == ["user: it is missing", None, "user: it is missing"]


def test_a_model_of_ratings_gives_the_ratings_that_it_predicts(ask: Ask, tmp_path: Path) -> None:
    rated = made_bundle(tmp_path / "rated", rated=True)
    rows = ask({"user": ["ann", "new"]}, k=3, of=rated)
    assert (rows[0]["items"], rows[1]["answered_by"]) == (DAIRY, "popularity")
    pq.write_table(pa.table({"user": ["ann"] * 3, "item": DAIRY}), tmp_path / "pairs.parquet")
    predicting.predict(rated, tmp_path / "pairs.parquet", tmp_path / "ratings.parquet")
    ratings = pq.read_table(tmp_path / "ratings.parquet").to_pylist()
    assert rows[0]["scores"] == pytest.approx([row["prediction"] for row in ratings], rel=1e-5)


def test_a_prediction_of_pairs_keeps_user_and_item_and_leaves_features_out(bundle: Bundle, tmp_path: Path) -> None:
    table = pa.table({"user": ["ann", "new"], "item": ["milk", "milk"], "region": ["north", "south"], "note": [1, 2]})
    pq.write_table(table, tmp_path / "pairs.parquet")
    assert predicting.predict(bundle, tmp_path / "pairs.parquet", tmp_path / "out.parquet") == (2, 0)
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert list(rows[0]) == ["user", "item", "note", "prediction", "answered_by", "error"]
    assert [(row["user"], row["item"], row["answered_by"]) for row in rows] == [("ann", "milk", "model"), ("new", "milk", "features")]


@pytest.mark.parametrize(
    ("columns", "k", "target", "says"),
    [
        ({"user": ["ann"]}, 0, "out.parquet", r"--top-k: 0 items for each user: take 1 or more"),
        ({"user": ["ann"]}, 5, "out.csv", r"output '.*out.csv': lists of items and scores don't fit in a .csv file: write .parquet"),
        ({"person": ["ann"]}, 5, "out.parquet", r"input '.*in.parquet': no column 'user'; the input has: person"),
        ({"user": pa.array([], pa.string())}, 5, "out.parquet", r"input '.*in.parquet' has no rows"),
        ({"user": pa.array([None], pa.string())}, 5, "out.parquet", r"no row fits; row 0: user: it is missing"),
    ],
)
def test_a_request_that_can_not_be_answered_is_one_line_and_nothing_is_written(
    bundle: Bundle, tmp_path: Path, columns: dict[str, Any], k: int, target: str, says: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    with pytest.raises(Refused, match=says):
        recommending.top_k(bundle, tmp_path / "in.parquet", tmp_path / target, k)
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]


def test_a_model_that_recommends_nothing_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    other = Bundle(bundle.folder, torch.nn.Linear(1, 1), bundle.encoder, {"family": "cnn"})  # type: ignore[arg-type]
    with pytest.raises(Refused, match=r"--top-k: a model of family 'cnn' recommends no items: leave --top-k out"):
        recommending.top_k(other, tmp_path / "in.parquet", tmp_path / "out.parquet", 5)


SHELVES = {"034545104X": "a", "0195153448": "01", "0002005018": "2", "195153448": "3"}
BOOKS = set(SHELVES)


@pytest.fixture(scope="module")
def of_books(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """From a CSV in which users and items are text: '7' and '07' are two users, and have had one book each."""
    folder = tmp_path_factory.mktemp("books")
    (folder / "train.csv").write_text("user,item\n7,0195153448\n07,195153448\nann,0002005018\nbob,034545104X\n")
    (folder / "validation.csv").write_text("user,item\nann,034545104X\n")
    (folder / "test.csv").write_text("user,item\nann,195153448\n")
    (folder / "books.csv").write_text("item,shelf\n" + "".join(f"{book},{shelf}\n" for book, shelf in SHELVES.items()))
    config = Config(str(folder), item_features="books.csv")
    prepared = prepare("interactions", load, config, SplitConfig(), folder / "cache")
    family = Ranker(Ranker.Config(dim=2), prepared.schema)
    family.bind(prepared.tables())
    family.eval()
    return Bundle(folder, family, prepared.encoder, {"family": "ranker"})


def test_a_csv_of_users_that_all_look_like_numbers_asks_for_those_that_training_knows(of_books: Bundle, tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("user\n7\n07\n")
    recommending.top_k(of_books, tmp_path / "users.csv", tmp_path / "out.parquet", 4)
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [(row["user"], row["answered_by"]) for row in rows] == [("7", "model"), ("07", "model")]
    assert [BOOKS - set(row["items"]) for row in rows] == [{"0195153448"}, {"195153448"}]


@pytest.mark.parametrize("column", ["item", "history"])
def test_a_csv_of_items_that_all_look_like_numbers_names_those_that_training_knows(of_books: Bundle, tmp_path: Path, column: str) -> None:
    (tmp_path / "users.csv").write_text(f"user,{column}\n7,0002005018\nnew,0195153448\n")
    recommending.top_k(of_books, tmp_path / "users.csv", tmp_path / "out.parquet", 4)
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["answered_by"] for row in rows] == ["model", "items"]
    assert [BOOKS - set(row["items"]) for row in rows] == [{"0195153448", "0002005018"}, {"0195153448"}]


def test_pairs_and_words_of_a_csv_that_all_look_like_numbers_are_those_that_training_knows(of_books: Bundle, tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("user,item,shelf\n07,0195153448,01\n7,0002005018,2\n")
    asked = list(predicting.read(tmp_path / "pairs.csv", predicting.text_columns(of_books.encoder)))
    assert pa.concat_tables(asked).to_pydict() == {"user": ["07", "7"], "item": ["0195153448", "0002005018"], "shelf": ["01", "2"]}
    predicting.predict(of_books, tmp_path / "pairs.csv", tmp_path / "out.parquet")
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [(row["user"], row["item"], row["answered_by"]) for row in rows] == [
        ("07", "0195153448", "model"),
        ("7", "0002005018", "model"),
    ]


def test_ids_that_were_numbers_in_training_are_numbers_in_a_csv_too(tmp_path: Path) -> None:
    """And words that training read as numbers or booleans are what it read: a CSV's '0012', '7.0' and 'True' are 12, 7 and 'true'."""
    users = IdEncoder.fit(Column("user", "id"), pa.chunked_array([[7, 12]]))
    words = WordsEncoder.fit(Column("member", "words"), pa.chunked_array([[True, False]]))
    encoder = Encoder(Schema((users.column, users.column), Column("target", "ranking")), {"user": users, "member": words})
    assert predicting.text_columns(encoder) == set()
    (tmp_path / "users.csv").write_text("user,member\n0012,True\n7.0,False\n")
    made = pa.concat_tables(predicting.read(tmp_path / "users.csv", predicting.text_columns(encoder)))
    assert users.codes(made["user"]).tolist() == [2, 1]
    assert words.array(made["member"])[0].values.tolist() == [2, 1]
