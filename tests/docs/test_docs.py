"""The documentation says what is: links resolve, configurations load, examples run, commands exist."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import tomli
from attrs import frozen

from stackwise_core.cli import main
from stackwise_core.config.errors import ConfigError
from stackwise_core.config.load import load
from stackwise_core.hookspecs import INTERFACES, hookspecs_of
