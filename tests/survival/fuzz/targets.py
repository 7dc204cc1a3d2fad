"""All targets, by name, cheap ones first."""

from tests.survival.fuzz.adapter import ADAPTER
from tests.survival.fuzz.cache_record import CACHE_RECORD
from tests.survival.fuzz.commands import TARGETS_OF_COMMANDS
from tests.survival.fuzz.config import CONFIG
from tests.survival.fuzz.disk_shard import DISK_SHARD
from tests.survival.fuzz.driver import Target
from tests.survival.fuzz.lmdb import LMDB
from tests.survival.fuzz.manifest import MANIFEST_JSON
from tests.survival.fuzz.plan import PLAN
from tests.survival.fuzz.run_config import RUN_CONFIG
from tests.survival.fuzz.tensors import TENSORS
from tests.survival.fuzz.tokenizer import TOKENIZER

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        CONFIG,
        RUN_CONFIG,
        MANIFEST_JSON,
        PLAN,
        TOKENIZER,
        TENSORS,
        ADAPTER,
        CACHE_RECORD,
        DISK_SHARD,
        LMDB,
        *TARGETS_OF_COMMANDS,
    )
}
