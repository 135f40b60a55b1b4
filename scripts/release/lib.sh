# shellcheck shell=bash
# Functions that the scripts of a release share. They run in the root of the repository.

# shellcheck source=scripts/lib.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../lib.sh"
cd "$here/.." || exit

# Prints the version in Cargo.toml.
package_version() { sed -n '/^\[package\]/,/^\[/s/^version = "\(.*\)"$/\1/p' Cargo.toml; }

# Prints the headings of CHANGELOG.md, newest first, without the section of unreleased changes.
released() { sed -n 's/^## \([0-9].*\)$/\1/p' CHANGELOG.md; }
