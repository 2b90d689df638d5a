from __future__ import annotations

import re

from dsd_trt.train.commands.pretrain import pretrain
from dsd_trt.train.shapes.card import model_card, with_imitation

TRAINING = {
    "steps": 600,
    "learning_rate": 0.002,
    "seed": 4,
    "held_out": {"zero-shot": {"image subject": 11.0}},
    "plan": {"diffusion_steps": 5000},
}
TABLES = {
    "zero-shot": {"image subject": 81.4, "text subject": 77.7, "R@1 of ten": 61.0},
    "other renderer": {"image subject": 79.6, "image predicate: inside": 58.2},
}


def _row(card: str, start: str) -> list[str]:
    (line,) = [line for line in card.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_figure_stands_in_its_row_and_column() -> None:
    card = model_card(TRAINING, TABLES)
    by_image, by_text = card.split("Given an image, the right text of two")
    header = _row(by_image, "Given a text, the right image of two (chance 50), by what is changed")
    assert header[1:] == ["zero-shot", "other renderer"]
    assert _row(by_image, "subject") == ["subject", "81", "80"]
    assert _row(by_image, "predicate: inside") == ["predicate: inside", "-", "58"]
    assert _row(by_text, "subject") == ["subject", "78", "-"]
    assert _row(by_text, "of ten") == ["of ten", "61", "-"]


def test_settings_are_listed_and_tables_are_not() -> None:
    card = model_card(TRAINING, TABLES)
    assert _row(card, "steps") == ["steps", "600"]
    assert _row(card, "learning rate") == ["learning rate", "0.002"]
    assert _row(card, "diffusion steps") == ["diffusion steps", "5000"]
    assert "held out" not in card
    assert "11.0" not in card


def test_the_settings_of_an_imitation_stand_once_before_the_figures() -> None:
    card = model_card(TRAINING, TABLES)
    first = with_imitation(card, {"images": 611, "lists": 303})
    settings, figures = first.split("## Figures\n")
    assert figures == card.split("## Figures\n")[1]
    assert settings.startswith(card.split("## Figures\n")[0].rstrip())
    assert _row(settings, "images") == ["images", "611"]
    again = with_imitation(first, {"images": 2000, "lists": 1000})
    assert _row(again, "images") == ["images", "2000"]
    assert again == first.replace("| 611 |", "| 2000 |").replace("| 303 |", "| 1000 |")


def test_it_says_how_it_was_trained_and_its_licence_stays_in_front() -> None:
    card = model_card(TRAINING, TABLES)
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "trained by its own generator to be matchable" in card
    for loss in ("denoising", "grounding", "ranking"):
        assert f"- {loss}" in card


def test_the_command_it_gives_exists() -> None:
    command = re.search(r"`dsd-trt pretrain (\w+) (.*)`", model_card(TRAINING, TABLES))
    assert command
    shapes = pretrain.commands[command[1]]
    context = shapes.make_context("shapes", command[2].split())
    assert context.params["seed"] == 4
