#!/usr/bin/env bash
# All that a machine with a CUDA device can tell of Stackwise, in ten minutes: the tests on the device, training steps
# against a loop written by hand, phases at the shape of a model of 70 billion weights, and the examples.
#
#     tests/benchmarks/device.sh [--device cuda|cpu] [--wheels FOLDER] [--out FOLDER] [--minutes 10] [--tiny] [--page]
#
# --wheels FOLDER  installs what isn't there from these files, without a network, into an environment beside the results
#                  that sees torch, transformers and peft of $PYTHON: wheels of Stackwise and of its plugins, and of
#                  cattrs, tomli, tomlkit, bitsandbytes, lmdb, pytest and what they need.
# --tiny           takes the smallest shapes, one example and few tests, to try the script itself.
# --page           writes docs/benchmarks/device.md.
#
# Results are in FOLDER (runs/device by default): device.json, and a log of each part. A part that runs out of its time
# is interrupted, and what it had found by then counts. Exit status: 3 without the device, 1 if a part failed.
set -u
cd "$(dirname "$0")/../.."
device=cuda wheels= out=runs/device minutes=10 tiny= page=
while [ $# -gt 0 ]; do
  case $1 in
    --device) device=$2; shift 2 ;;
    --wheels) wheels=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --minutes) minutes=$2; shift 2 ;;
    --tiny) tiny=1; shift ;;
    --page) page=1; shift ;;
    *) echo "device.sh: unknown option $1; its first lines say which there are" >&2; exit 2 ;;
  esac
done
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)}
python=$(command -v "$python") && python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
end=$(($(date +%s) + 60 * minutes))
whole=$((60 * minutes))

if [ "$device" = cuda ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "device.sh: torch finds no CUDA device here. --device cpu tries the script without one." >&2
  exit 3
fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
rm -rf "$out"/*.json "$out"/*.xml "$out"/*.tsv "$out"/*.log "$out/work"
mkdir -p "$out/work"

if [ -n "$wheels" ]; then
  "$python" -m venv --system-site-packages --without-pip "$out/environment" || exit 1
  site=$("$out/environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  # A wheel is a zip file; pip of the machine may be of an interpreter that can't be written to.
  "$python" -m pip install --quiet --no-index --no-deps --find-links "$wheels" --target "$site" "$wheels"/*.whl || exit 1
  python=$out/environment/bin/python
fi
export CUBLAS_WORKSPACE_CONFIG=${CUBLAS_WORKSPACE_CONFIG:-:4096:8}
export PYTHONPATH=$PWD OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false

failed=0
# part NAME PERCENT COMMAND...: runs a part in its share of the time, or in what is left of it.
part() {
  local name=$1 allowed=$((whole * $2 / 100)) left=$((end - $(date +%s))) status
  shift 2
  [ "$left" -lt "$allowed" ] && allowed=$left
  if [ "$allowed" -lt 5 ]; then
    echo "$name: no time left"
    printf '%s\t%s\t%s\n' "$name" 124 0 >>"$out/parts.tsv"
    failed=1
    return
  fi
  local began=$(date +%s)
  timeout --signal=INT --kill-after=15 "$allowed" "$@" >"$out/$name.log" 2>&1
  status=$?
  printf '%s\t%s\t%s\n' "$name" "$status" "$(($(date +%s) - began))" >>"$out/parts.tsv"
  echo "$name: status $status after $(($(date +%s) - began)) s"
  [ "$status" = 0 ] || failed=1
}

if [ -n "$tiny" ]; then
  phases=tiny large=tiny steps=tiny examples=smallest tests=tests/benchmarks/test_by_hand.py rounds=1
else
  phases=mid large=70B steps="mid 256 default" examples=$(cd docs/examples && ls -- *.toml | sed 's/\.toml$//')
  tests="tests/engine tests/survival plugins/stackwise-precision plugins/stackwise-peft plugins/stackwise-bitsandbytes
         plugins/stackwise-cache"
  rounds=3
fi

# Most of what only a device can tell comes first.
part "phases-$large" 20 "$python" -m tests.benchmarks.phases "$large" --device "$device" --json "$out/phases-$large.json"
[ "$phases" = "$large" ] ||
  part "phases-$phases" 8 "$python" -m tests.benchmarks.phases "$phases" --device "$device" --json "$out/phases-$phases.json"
for shape in $steps; do
  part "engine-$shape" 20 "$python" -m tests.benchmarks.engine --shapes "$shape" --device "$device" --rounds "$rounds" \
    --compile --json "$out/engine-$shape.json"
done

if "$python" -m pytest --help 2>/dev/null | grep -q -- '--device'; then
  # shellcheck disable=SC2086
  part suite 30 "$python" -m pytest -q -p no:cacheprovider -rfE --tb=line --device "$device" --junitxml "$out/suite.xml" \
    $("$python" -c 'import xdist' 2>/dev/null && echo -n 4) $tests
else
  echo "suite: pytest isn't there, or knows no --device"
fi

cp -r docs/examples "$out/work/examples"
mkdir -p "$out/work/docs" && mv "$out/work/examples" "$out/work/docs/examples"
for name in $examples; do
  left=$((end - $(date +%s)))
  [ "$left" -lt 10 ] && break
  began=$(date +%s.%N)
  (cd "$out/work" && timeout --signal=INT --kill-after=15 "$((left < 60 ? left : 60))" "$python" -m stackwise_core run \
    "docs/examples/$name.toml" --set "run.device=$device") >"$out/example-$name.log" 2>&1
  status=$?
  "$python" -c "import sys; print('\t'.join(sys.argv[1:3]), round($(date +%s.%N) - $began, 1), sep='\t')" \
    "$name" "$status" >>"$out/examples.tsv"
  [ "$status" = 0 ] || failed=1
done

if [ -n "$page" ]; then
  "$python" -m tests.benchmarks.device "$out" --device "$device" --page
else
  "$python" -m tests.benchmarks.device "$out" --device "$device"
fi || failed=1
exit $failed
