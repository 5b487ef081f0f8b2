#!/usr/bin/env bash
# All that an NVIDIA GPU can tell of matroot's kernels, in eight minutes and one command:
#
#   benchmarks/gpu_check.sh [--dry] [FOLDER]
#
# FOLDER, else $OUT, else build/gpu_check, gets rows.jsonl, a row of each measurement as soon as it
# is made, and log.txt, all that was printed, with the table beside the goals last. It may be cut off
# anywhere; the same command goes on from there: what has rows of the same commit and GPU is not
# measured again, and compiled kernels stay in build/triton-cache.
#
#   1. device, driver, versions
#   2. every variant of the kernels compiled, 15 at once, and checked: errors, bits, memory
#   3. times beside the goals, the most important first, eager and in a CUDA graph
#   4. what a launch costs, what the device gives at most, what the kernels reach of it
#   5. the table
#   6. the tests that need a GPU; errors over condition numbers, if time is left
#
# --dry walks through all of it without a GPU, in Triton's interpreter, on tiny matrices.
#
# Needs Python with PyTorch 2.11 and Triton 3.6 or newer, NumPy, typer and pytest, no installation:
# $PYTHON, else .venv/bin/python, else python3. The seconds of all parts together: $TOTAL, or 470.
set -uo pipefail
usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; }

dry=() folder=${OUT:-}
for argument; do
  case $argument in
    -h | --help) usage; exit ;;
    --dry) dry=(--dry) ;;
    -*) usage >&2; exit 2 ;;
    *) folder=$(realpath -m "$argument") ;;
  esac
done
cd "$(dirname "$0")/.."
out=${folder:-$PWD/build/gpu_check}
total=${TOTAL:-470}
mkdir -p "$out"
rows=$out/rows.jsonl log=$out/log.txt
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH=src PYTHONUNBUFFERED=1 TRITON_CACHE_DIR=$PWD/build/triton-cache
workers=15
if [ ${#dry[@]} -gt 0 ]; then
  export TRITON_INTERPRET=1 OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=
  workers=1
fi
failed=()

# part NAME SECONDS COMMAND…: at most so long, and no longer than all may take. A part that fails or
# runs over does not stop the next.
part() {
  local name=$1 most=$2 left=$((total - SECONDS)) status
  shift 2
  [ "$left" -lt "$most" ] && most=$left
  echo "== $name (at most $most s, $SECONDS s gone)" | tee -a "$log"
  if [ "$most" -lt 5 ]; then
    echo "no time left" | tee -a "$log"
    failed+=("$name")
    return 1
  fi
  timeout --signal=INT --kill-after=10 "$most" "$@" 2>&1 | tee -a "$log"
  status=${PIPESTATUS[0]}
  [ "$status" -eq 0 ] || failed+=("$name: status $status")
  return "$status"
}

gpu=("$python" benchmarks/gpu.py)
versions='import platform, numpy, torch, triton
print("Python", platform.python_version(), "NumPy", numpy.__version__, "PyTorch", torch.__version__,
      "Triton", triton.__version__, "CUDA", torch.version.cuda)
if torch.cuda.is_available(): print(torch.cuda.get_device_properties(0))'
name() { nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,power.limit --format=csv; }

[ ${#dry[@]} -gt 0 ] || name 2>&1 | tee -a "$log"
part versions 60 "$python" -c "$versions" || exit 1
part variants 150 "${gpu[@]}" verify --output "$rows" --workers "$workers" --budget 120 "${dry[@]}"
speed=("${gpu[@]}" measure --output "$rows" --part speed --budget 140 "${dry[@]}")
# A capture that fails may take the process along; the second one leaves it out.
part speed 150 "${speed[@]}" || part "speed, again" 100 "${speed[@]}"
part ceilings 40 "${gpu[@]}" measure --output "$rows" --part ceilings "${dry[@]}"
part table 20 "${gpu[@]}" summary "$rows"

# In parallel where pytest-xdist is there; without pytest-timeout its option is unknown.
options=(-q --tb=short -p no:cacheprovider -W "ignore::pytest.PytestConfigWarning")
if [ ${#dry[@]} -gt 0 ]; then
  tests=("tests/contract/test_triton.py" -k "plain_tf32")
else
  tests=(tests/contract/test_{selftest,backends,triton,triton_double}.py -m "not slow"
    -k "not native")
  "$python" -c "import xdist" 2> /dev/null && options+=(-n "$workers")
fi
part tests 200 "$python" -m pytest "${options[@]}" "${tests[@]}"
part accuracy 60 "${gpu[@]}" measure --output "$rows" --part accuracy --budget 50 "${dry[@]}"

if [ ${#failed[@]} -gt 0 ]; then
  printf 'not all went well: %s\n' "$(IFS=';'; echo "${failed[*]}")" | tee -a "$log"
  exit 1
fi
echo "all parts done in $SECONDS s; see $out" | tee -a "$log"
