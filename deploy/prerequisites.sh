#!/bin/sh
# Says what the machine lacks, all at once, and how to get it. Exit status 1 if anything is missing.
# Usage: prerequisites.sh PYTHON
python=${1:-python3}
missing=0

lacks() {
    missing=1
    printf 'Missing: %s\n    Debian, Ubuntu: %s\n    macOS: %s\n' "$1" "$2" "$3" >&2
}

if ! command -v "$python" >/dev/null 2>&1 ||
    ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    lacks "Python 3.11 or newer ('$python' is $("$python" --version 2>&1 | tail -n 1)); name another by make PYTHON=…" \
        "apt-get install python3 python3-venv" "brew install python"
elif ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    lacks "Python's modules venv and ensurepip" "apt-get install python3-venv" "brew install python"
fi

java_version=$(java -version 2>&1 | sed -n 's/.* version "\(1\.\)\{0,1\}\([0-9]*\).*/\2/p' | head -n 1)
if [ "${java_version:-0}" -lt 17 ]; then
    lacks "a Java runtime, version 17 or newer (\`java\` is ${java_version:-not there})" \
        "apt-get install openjdk-17-jre-headless" "brew install openjdk"
fi

if ! command -v mvn >/dev/null 2>&1; then
    lacks "Maven (\`mvn\`), which fetches Kafka, Debezium and Apicurio" "apt-get install maven" "brew install maven"
fi

exit $missing
