"""The local Hub gives and refuses what the real one does, asked by the real client."""

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from tests.fakes.hub import LocalHub
from tests.fakes.hub.repositories import Repository
from tests.fakes.hub.server import ALICE, ALICE_READS, BOB

DATASET = {"repo_id": "alice/news", "repo_type": "dataset"}


def api(hub: LocalHub, token: str | bool = False) -> HfApi:
    return HfApi(endpoint=hub.url, token=token)


def news(hub: LocalHub, *, private: bool) -> Repository:
    """A data set of alice with seven small files in two folders."""
    paths = ["README.md", "a/0.txt", "a/1.txt", "a/b/2.txt", "c/3.txt", "c/4.txt", "c/5.txt"]
    repository = hub.storage.create("dataset", "alice/news", private=private)
    repository.commit({path: hub.storage.store_regular(path.encode()) for path in paths}, "seven files")
    return repository


def status(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def test_a_token_says_who_one_is(hub: LocalHub) -> None:
    assert api(hub, ALICE).whoami()["name"] == "alice"
    with pytest.raises(HfHubHTTPError) as refused:
        api(hub, "hf_unknown").whoami()
    assert status(refused) == 401


def test_a_repository_is_made_once_and_only_under_ones_own_name(hub: LocalHub) -> None:
    assert api(hub, ALICE).create_repo(**DATASET, private=True).repo_id == "alice/news"
    assert api(hub, ALICE).create_repo(**DATASET, private=True, exist_ok=True).repo_id == "alice/news"
    for token, expected in ((ALICE, 409), (ALICE_READS, 403), (BOB, 403), (False, 401)):
        with pytest.raises(HfHubHTTPError) as refused:
            api(hub, token).create_repo(**DATASET)
        assert status(refused) == expected


def test_a_private_repository_is_not_there_for_others(hub: LocalHub) -> None:
    news(hub, private=True)
    assert api(hub, ALICE).dataset_info("alice/news").private
    for token, expected in ((BOB, 404), (False, 401)):
        with pytest.raises(RepositoryNotFoundError) as refused:
            api(hub, token).dataset_info("alice/news")
        assert status(refused) == expected


def test_only_the_owner_writes_and_not_with_a_token_that_reads(hub: LocalHub) -> None:
    repository = news(hub, private=False)
    assert not api(hub).dataset_info("alice/news").private
    head = repository.head
    for token, expected in ((BOB, 403), (ALICE_READS, 403), (False, 401)):
        with pytest.raises(HfHubHTTPError) as refused:
            api(hub, token).upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", **DATASET)
        assert status(refused) == expected
    assert repository.head == head


def test_a_tree_is_listed_in_pages(hub: LocalHub) -> None:
    repository = news(hub, private=False)
    listed = [entry.path for entry in api(hub).list_repo_tree(**DATASET, recursive=True)]
    assert sorted(listed) == sorted([*repository.trees[repository.head], "a", "a/b", "c"])
    assert len(hub.asked("tree")) == 3
    assert {entry.path for entry in api(hub).list_repo_tree(**DATASET)} == {"README.md", "a", "c"}
    assert {entry.path for entry in api(hub).list_repo_tree(**DATASET, path_in_repo="a")} == {
        "a/0.txt",
        "a/1.txt",
        "a/b",
    }
    assert [entry.path for entry in api(hub).get_paths_info(**DATASET, paths=["c", "a/0.txt", "none"])] == [
        "a/0.txt",
        "c",
    ]


def test_an_unknown_revision(hub: LocalHub) -> None:
    news(hub, private=False)
    with pytest.raises(RevisionNotFoundError):
        api(hub).dataset_info("alice/news", revision="nothing")


def test_a_commit_on_another_than_the_newest_is_refused(hub: LocalHub) -> None:
    repository = news(hub, private=False)
    old, new = list(repository.trees)
    add = {"operations": [CommitOperationAdd("x.txt", b"x")], "commit_message": "x", **DATASET}
    with pytest.raises(HfHubHTTPError) as refused:
        api(hub, ALICE).create_commit(**add, parent_commit=old)
    assert status(refused) == 412
    add["operations"] = [CommitOperationAdd("x.txt", b"x")]
    assert api(hub, ALICE).create_commit(**add, parent_commit=new).oid == repository.head


def test_a_commit_names_no_file_that_did_not_arrive(hub: LocalHub) -> None:
    news(hub, private=False)
    add = CommitOperationAdd("x.parquet", b"x" * 100)
    add._upload_mode, add._is_uploaded, add._should_ignore = "lfs", True, False
    with pytest.raises(BadRequestError, match=r"does not exist: x\.parquet"):
        api(hub, ALICE).create_commit(operations=[add], commit_message="x", **DATASET)


def test_an_unknown_licence_is_refused(hub: LocalHub) -> None:
    news(hub, private=False)
    card = CommitOperationAdd("README.md", b"---\nlicense: mine\n---\n")
    with pytest.raises(ValueError, match='"license" must be one of'):
        api(hub, ALICE).create_commit(operations=[card], commit_message="x", **DATASET)
