"""Environment variables that are settings."""

import logging

import pytest

from stackwise_core.config.sources import read_environment

SERVICE = """
STACKWISE_PORT=tcp://10.0.0.1:80
STACKWISE_PORT_80_TCP=tcp://10.0.0.1:80
STACKWISE_PORT_80_TCP_ADDR=10.0.0.1
STACKWISE_PORT_80_TCP_PORT=80
STACKWISE_PORT_80_TCP_PROTO=tcp
STACKWISE_SERVICE_HOST=10.0.0.1
STACKWISE_SERVICE_PORT=80
STACKWISE_SERVICE_PORT_HTTP=80
STACKWISE_RUN_SERVICE_HOST=10.0.0.1
STACKWISE_RUN_PORT_80_TCP_ADDR=10.0.0.1
STACKWISE_HOME=/somewhere
STACKWISE_=nothing
"""
"""Variables that Kubernetes sets for services "stackwise" and "stackwise-run", and unrelated ones."""


def test_what_a_service_injects_is_no_setting(caplog):
    """Nor is it a near miss."""
    environ = dict(line.split("=", 1) for line in SERVICE.strip().splitlines())
    assert read_environment(environ).data == {}
    assert caplog.records == []


@pytest.mark.parametrize(
    ("variable", "near"),
    [
        ("TRAINING_BATCH_SIZE", "TRAINING__BATCH_SIZE"),
        ("TRAININGBATCHSIZE", "TRAINING__BATCH_SIZE"),
        ("RUN_NAMES", "RUN__NAME"),
        ("MASK_SCHEDULE", "MASK_SCHEDULE__USE"),
        ("CACHE_BACKEND_USE", "CACHE_BACKEND__USE"),
        ("DISABLE_PLUGIN", "DISABLE_PLUGINS"),
        ("AUTOLOAD_PLUGIN", None),
    ],
)
def test_a_near_miss_is_noted(caplog, variable, near):
    """It sets nothing, and the note has the variable that was meant."""
    with caplog.at_level(logging.WARNING):
        assert read_environment({f"STACKWISE_{variable}": "8"}).data == {}
    said = [record.getMessage() for record in caplog.records]
    meant = f"STACKWISE_{variable} sets nothing; did you mean STACKWISE_{near}?"
    assert said == ([f"note: the environment variable {meant}"] if near else [])


def test_the_value_of_a_setting(caplog):
    """A double underscore stands for the dot."""
    others = {"STACKWISE_DISABLE_PLUGINS": "x", "OTHER__KEY": "1"}
    layer = read_environment({"STACKWISE_TRAINING__BATCH_SIZE": "8", **others})
    assert layer.data == {"training": {"batch_size": 8}}
    assert caplog.records == []
