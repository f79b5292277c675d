#!/usr/bin/env bash
# Draws bench/speed.csv, the picture at the top of README.md: bench/draw_speed.sh [file], by default
# .github/speed.svg. Needs awk.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
picture="${1:-$root/.github/speed.svg}"
trap 'rm -f "$picture.tmp"' EXIT

LC_ALL=C awk '
  function x(ratio) { return left + width * log(ratio) / log(largest) }
  function text(at_x, at_y, size, anchor, style, s) {
    printf "<text x=\"%.1f\" y=\"%.1f\" font-size=\"%d\" text-anchor=\"%s\"%s>%s</text>\n", at_x, at_y, size, anchor, style, s
  }
  BEGIN { left = 190; width = 500; top = 66; step = 34; largest = 128 }
  /^#/ { sub(/^# */, ""); notes[++note] = $0; next }
  !header++ { next }
  {
    # A name in quotes may hold commas; the two numbers do not.
    match($0, /,[0-9.]+,[0-9.]+$/)
    name = substr($0, 1, RSTART - 1)
    gsub(/"/, "", name)
    split(substr($0, RSTART + 1), range, ",")
    if (!RSTART || range[1] < 1 || range[2] < range[1] || range[2] > largest) {
      print "bench/speed.csv: \"" $0 "\" is not a name and a range within 1 to " largest >"/dev/stderr"
      exit bad = 1
    }
    names[++count] = name; from[count] = range[1]; to[count] = range[2]
  }
  END {
    if (bad) exit 1
    bottom = top + step * count
    height = bottom + 78
    printf "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"780\" height=\"%d\" viewBox=\"0 0 780 %d\" font-family=\"Helvetica, Arial, '\''DejaVu Sans'\'', sans-serif\" fill=\"#24292f\">\n", height, height
    printf "<rect width=\"780\" height=\"%d\" fill=\"#ffffff\"/>\n", height
    text(390, 28, 17, "middle", " font-weight=\"bold\"", "How many times as long as heed the others take")
    for (tick = 1; tick <= largest; tick *= 2) {
      printf "<path d=\"M%.1f %d V%d\" stroke=\"%s\" stroke-width=\"%s\"/>\n", x(tick), top - 8, bottom, tick == 1 ? "#006a8e" : "#e4e4e4", tick == 1 ? 2 : 1
      text(x(tick), bottom + 17, 12, "middle", "", tick == 1 ? "heed" : tick " ×")
    }
    for (i = 1; i <= count; ++i) {
      y = top + step * (i - 1)
      text(left - 14, y + 17, 14, "end", "", names[i])
      printf "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"20\" rx=\"3\" fill=\"#e08214\"/>\n", x(from[i]), y + 2, x(to[i]) - x(from[i])
      # Beside the bar, on the side that has room.
      label = from[i] " to " to[i]
      if (x(to[i]) + 100 < 770) text(x(to[i]) + 8, y + 17, 13, "start", "", label)
      else text(x(from[i]) - 8, y + 17, 13, "end", "", label)
    }
    text(390, bottom + 44, 12, "middle", "", notes[2])
    text(390, bottom + 62, 12, "middle", "", notes[3])
    print "</svg>"
  }' "$root/bench/speed.csv" >"$picture.tmp"
mv "$picture.tmp" "$picture"
