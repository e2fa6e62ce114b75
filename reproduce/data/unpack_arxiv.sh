#!/bin/sh
# Unpacks every paper below FOLDER.  In arXiv's archives each is NAME.gz, a tar of several files or a single file.
#   unpack_arxiv.sh FOLDER
set -eu
find "$1" -name '*.gz' | while read -r packed; do
  paper="${packed%.gz}"
  mkdir -p "$paper"
  if [ -n "$(tar -tzf "$packed" 2>/dev/null)" ]; then
    tar -xzf "$packed" -C "$paper"
  else
    gunzip -c "$packed" > "$paper/paper.tex"
  fi
  rm "$packed"
done
