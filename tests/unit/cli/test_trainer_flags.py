import dataclasses

import pytest

from pretraining.cli.arguments.pretrain import TRAINER_DEFAULTS, parse_pretrain_arguments
from pretraining.cli.trainer_flags import LOG_LEVELS, OUR_OWN_NAMES, trainer_flags

ONLY_PYTHON_OBJECTS = {"parallelism_config"}


@pytest.fixture(scope="module")
def fields() -> dict[str, dataclasses.Field]:
    from transformers import TrainingArguments

    return {field.name: field for field in dataclasses.fields(TrainingArguments) if field.init}


def test_every_field_of_the_imported_class_is_a_flag(fields: dict[str, dataclasses.Field]) -> None:
    names = {flag.name for flag in trainer_flags({})}
    assert names == set(fields) - ONLY_PYTHON_OBJECTS - set(OUR_OWN_NAMES)


def test_plain_defaults_and_help_are_those_of_the_class(fields: dict[str, dataclasses.Field]) -> None:
    flags = {flag.name: flag for flag in trainer_flags({})}
    plain = [name for name, field in fields.items() if name in flags and isinstance(field.default, int | float | str)]
    assert len(plain) > 50
    for name in plain:
        if flags[name].default is not None:  # a default that is computed is left to the Trainer
            assert flags[name].default == fields[name].default, name
    assert all(len(flag.help) > 10 for flag in flags.values())


def test_nothing_is_reported_to_when_asked() -> None:
    from transformers import TrainingArguments

    arguments = parse_pretrain_arguments("", ["--report_to", "none"])
    assert TrainingArguments(output_dir="", report_to=arguments.trainer["report_to"]).report_to == []


def test_choices_come_from_the_enumerations() -> None:
    choices = {flag.name: flag.choices for flag in trainer_flags({})}
    assert set(choices["eval_strategy"]) == {"no", "steps", "epoch"}
    assert "every_save" in choices["hub_strategy"]


def test_our_defaults_are_flags_of_the_trainer_with_values_of_their_type() -> None:
    flags = {flag.name: flag for flag in trainer_flags(TRAINER_DEFAULTS)}
    for name, default in TRAINER_DEFAULTS.items():
        flag = flags[name]
        assert flag.default == default
        if default is not None:
            texts = default if isinstance(default, list) else [str(default)]
            assert flag.value(texts) == default, name


def test_log_levels_are_those_of_the_trainer() -> None:
    from transformers.training_args import trainer_log_levels

    assert set(LOG_LEVELS) == set(trainer_log_levels)
