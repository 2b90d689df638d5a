#!/usr/bin/env bash
# Whether pandas is installed decides what pyarrow's as_py() and to_pylist() give for nanoseconds.
#
# Versions: pyarrow 26.0.1, pandas 3.1.1, Python 3.11.  Date: 2026-11-29.
# Expected: a value that Python's own types do not have is given in one way, or refused, always.
# Seen, without pandas: timestamps, times and durations of whole microseconds are Python's own types;
# one with a nanosecond raises ValueError, and so does to_pylist() of the whole table. The message
# says to install pandas, "to return as Timestamp with nanosecond support", for times of day too.
# Seen, with pandas installed and not imported: all timestamps become pandas.Timestamp, and a time of
# day loses its nanosecond without a message.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pyarrow==26.0.1
cat > "$folder/read.py" <<'PYTHON'
import pyarrow

for name in ("timestamp", "time64", "duration"):
    for value in (1000, 1):
        array = pyarrow.array([value], getattr(pyarrow, name)("ns"))
        try:
            found = array[0].as_py()
            print(name, value, f"{type(found).__module__}.{type(found).__name__}", found)
        except ValueError as error:
            assert "Install pandas" in str(error), "this has changed"
            print(name, value, "ValueError")
PYTHON
"$folder/venv/bin/python" "$folder/read.py" > "$folder/without"
"$folder/venv/bin/pip" install --quiet pandas==3.1.1
"$folder/venv/bin/python" "$folder/read.py" > "$folder/with"
diff - "$folder/without" <<'SEEN' || { echo "this has changed"; exit 1; }
timestamp 1000 datetime.datetime 1970-01-01 00:00:00.000001
timestamp 1 ValueError
time64 1000 datetime.time 00:00:00.000001
time64 1 ValueError
duration 1000 datetime.timedelta 0:00:00.000001
duration 1 ValueError
SEEN
diff - "$folder/with" <<'SEEN' || { echo "this has changed"; exit 1; }
timestamp 1000 pandas.Timestamp 1970-01-01 00:00:00.000001
timestamp 1 pandas.Timestamp 1970-01-01 00:00:00.000000001
time64 1000 datetime.time 00:00:00.000001
time64 1 datetime.time 00:00:00
duration 1000 pandas.Timedelta 0 days 00:00:00.000001
duration 1 pandas.Timedelta 0 days 00:00:00.000000001
SEEN
