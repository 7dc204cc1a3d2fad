#!/usr/bin/env bash
# All that a machine with a CUDA device can tell of Stackwise, in ten minutes: the tests on the device, training steps
# against a loop written by hand, phases at the shape of a model of 70 billion weights, and the examples.
#
#     tests/benchmarks/device.sh [--device cuda|cpu] [--wheels FOLDER] [--out FOLDER] [--minutes 10] [--tiny] [--page]
#
# --wheels FOLDER  installs these files beside the results, without a network, for a machine whose python ($PYTHON) has
#                  torch, transformers and peft: wheels of Stackwise and of its plugins, and of cattrs, tomli, tomlkit,
#                  bitsandbytes, lmdb, pytest and whatever else they need there.
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
if [ -n "$(ls -A "$out" 2>/dev/null)" ] && [ ! -e "$out/.of-device.sh" ]; then
  echo "device.sh: $out isn't empty, and has no results of this script: name another folder by --out" >&2
  exit 2
fi
rm -rf "$out"
mkdir -p "$out/work"
out=$(cd "$out" && pwd)
touch "$out/.of-device.sh"

path=$PWD
if [ -n "$wheels" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --target "$out/site" "$wheels"/*.whl || exit 1
  path=$PWD:$out/site
fi
export PYTHONPATH=$path CUBLAS_WORKSPACE_CONFIG=${CUBLAS_WORKSPACE_CONFIG:-:4096:8}
export OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false

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

steps() {
  local name=$1 percent=$2
  shift 2
  part "engine-$name" "$percent" "$python" -m tests.benchmarks.engine --shapes "$name" --device "$device" \
    --json "$out/engine-$name.json" "$@"
}

phases() {
  part "phases-$1" "$2" "$python" -m tests.benchmarks.phases "$1" --device "$device" --json "$out/phases-$1.json"
}

# Most of what only a device can tell comes first.
if [ -n "$tiny" ]; then
  phases tiny 30
  steps tiny 50 --rounds 1
  examples=smallest tests=tests/benchmarks/test_by_hand.py
else
  phases 70B 17
  steps mid 22 --rounds 2 --compile
  phases mid 5
  steps 70B 15 --rounds 1
  steps 256 6
  steps default 5
  examples=$(cd docs/examples && ls -- *.toml | sed 's/\.toml$//')
  tests="tests/engine tests/survival plugins/stackwise-precision plugins/stackwise-peft plugins/stackwise-bitsandbytes
         plugins/stackwise-cache"
fi

if "$python" -m pytest --help 2>/dev/null | grep -q -- '--device'; then
  workers=$("$python" -c 'import xdist' 2>/dev/null && echo "-n 4")
  # shellcheck disable=SC2086
  part suite $((100 * (end - $(date +%s)) / whole - 12)) "$python" -m pytest -q -p no:cacheprovider -rfE --tb=line \
    --device "$device" --junitxml "$out/suite.xml" $workers $tests
else
  echo "suite: pytest isn't there, or knows no --device"
fi

mkdir -p "$out/work/docs" && cp -r docs/examples "$out/work/docs"
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
