#!/usr/bin/env bash
# Installs the programs that `python -m benchmarks.serving` compares with, each in a virtual environment of its own.
#
#     benchmarks/peers/install.sh [--into FOLDER] [PEER ...]
#
# FOLDER (default: $SEALGATE_PEERS, else ~/.cache/sealgate-peers) gets one folder per peer, about 7 GB for all of them.
# Without names all peers are installed; one that is there in the pinned versions already is left alone. One that cannot
# be installed is said so, with its pip's last words in FOLDER/PEER.log, and the others go on; the exit code is their
# number. PYTHON names the interpreter (default python3; 3.11 or newer). Pins stand beside in requirements/PEER.txt; where
# these say "# python: 3.10", that version is looked for, also among pyenv's, and taken if it is there.
set -u

here=$(cd "$(dirname "$0")" && pwd)
into=${SEALGATE_PEERS:-$HOME/.cache/sealgate-peers}
python=${PYTHON:-python3}
peers=()
while [ $# -gt 0 ]; do
  case $1 in
    --into) into=${2:?--into needs a folder}; shift 2 ;;
    -h | --help) sed -n '2,11p' "$0" | sed 's/^# \{0,1\}//'; exit 0 ;;
    -*) echo "install.sh: $1 is no option; see --help" >&2; exit 2 ;;
    *) peers+=("$1"); shift ;;
  esac
done
if [ ${#peers[@]} -eq 0 ]; then
  for file in "$here"/requirements/*.txt; do peers+=("$(basename "$file" .txt)"); done
fi

# The interpreter of one peer: the version that its pins ask for, if this machine has it.
interpreter() {
  local wanted candidate
  wanted=$(sed -n 's/^# python: //p' "$1")
  for candidate in ${wanted:+"python$wanted" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$wanted".*/bin/python}; do
    if "$candidate" -c '' 2>/dev/null; then echo "$candidate"; return; fi
  done
  echo "$python"
}

failed=0
mkdir -p "$into" || exit 2
for peer in "${peers[@]}"; do
  pins=$here/requirements/$peer.txt
  if [ ! -f "$pins" ]; then
    echo "install.sh: no peer is called $peer; there are: $(cd "$here/requirements" && echo *.txt | sed 's/\.txt//g')" >&2
    failed=$((failed + 1))
    continue
  fi
  home=$into/$peer
  if cmp -s "$pins" "$home/installed.txt"; then
    echo "$peer: there already"
    continue
  fi
  echo "$peer: installing (its words go to $into/$peer.log)"
  if rm -rf "$home" && "$(interpreter "$pins")" -m venv "$home" >"$into/$peer.log" 2>&1 &&
    "$home/bin/python" -m pip install --no-compile -q -r "$pins" >>"$into/$peer.log" 2>&1; then
    cp "$pins" "$home/installed.txt"
    echo "$peer: installed"
  else
    echo "$peer: NOT installed: $(tail -n 1 "$into/$peer.log")" >&2
    failed=$((failed + 1))
  fi
done
exit "$failed"
