"""The board of policy versions, with strings for references."""

import pytest

from learner.policy.board import NOTHING_PUBLISHED, PolicyBoard


def board_with(*versions: int, keep: int = 3) -> PolicyBoard:
    board = PolicyBoard(keep=keep)
    for version in versions:
        board.publish(version, [f"ref {version}"])
    return board


def test_a_new_board_has_nothing() -> None:
    assert PolicyBoard().latest_version() == NOTHING_PUBLISHED


def test_the_latest_version_is_the_last_published() -> None:
    assert board_with(0, 1, 5).latest_version() == 5


def test_weights_are_the_newest_not_the_asked() -> None:
    assert board_with(0, 1, 2).weights(1) == (2, ["ref 2"])


def test_weights_of_the_future_are_refused() -> None:
    with pytest.raises(LookupError, match="version 3 is not published; newest is 2"):
        board_with(2).weights(3)


def test_an_empty_board_has_no_weights_to_give() -> None:
    with pytest.raises(LookupError, match="newest is -1"):
        PolicyBoard().weights(-1)


def test_only_the_last_versions_are_kept() -> None:
    assert sorted(board_with(0, 1, 2, 3, keep=2)._refs_of_version) == [2, 3]


def test_an_older_version_is_refused_and_the_next_free_number_named() -> None:
    with pytest.raises(ValueError, match="publish these as 6"):
        board_with(5).publish(4, ["ref"])


def test_a_board_that_is_rewound_takes_old_numbers_again() -> None:
    board = board_with(4, 5)
    board.rewind(3)
    board.publish(3, ["new ref"])
    assert board.weights(0) == (3, ["new ref"])


def test_a_rewound_board_has_nothing_of_the_dead() -> None:
    board = board_with(4, 5)
    board.rewind(5)
    assert board.latest_version() == NOTHING_PUBLISHED


def test_a_version_published_again_has_another_edition() -> None:
    board = board_with(5)
    first = board.latest()
    board.rewind(5)
    board.publish(5, ["new ref"])
    second = board.latest()
    assert (first[0], second[0]) == (5, 5)
    assert first[1] != second[1]


def test_other_weights_under_a_published_version_are_refused() -> None:
    with pytest.raises(ValueError, match="not above the newest, 5"):
        board_with(5).publish(5, ["other"])


def test_publishing_the_same_again_changes_nothing() -> None:
    board = board_with(4, 5)
    before = board.latest()
    board.publish(5, ["ref 5"])
    assert board.latest() == before


def test_a_version_without_references_is_refused() -> None:
    with pytest.raises(ValueError, match="version 0 has no references"):
        PolicyBoard().publish(0, [])


def test_a_caller_cannot_change_what_is_published() -> None:
    board = board_with(0)
    board.weights(0)[1].clear()
    assert board.weights(0) == (0, ["ref 0"])


def test_a_board_that_keeps_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="keep is 0"):
        PolicyBoard(keep=0)
