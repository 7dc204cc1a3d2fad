"""A local plugin whose implementation needs a package that nobody has."""

from stackwise_core.hookspecs import Implementation, hookimpl


@hookimpl
def mask_schedule():
    where = "stackwise_masking.schedules:Constant", "stackwise_masking.options:ConstantOptions"
    return [Implementation("hungry", "Needs what isn't there", *where, packages=("no_such_package",))]
