# Every target sets up what it needs: Debian packages (as root), .venv, guest kernel.

VENV   := .venv
PYTHON := $(VENV)/bin/python
READY  := $(VENV)/.ready
CACHE  ?= $(or $(FLAGSHIM_CACHE),$(shell [ "$$(id -u)" = 0 ] && echo /var/cache/flagshim || echo $${XDG_CACHE_HOME:-$$HOME/.cache}/flagshim))
SUDO   := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

PACKAGES := python3-venv libseccomp2 gcc libc6-dev gcc-multilib make \
            strace gdb rsync tar fuse-overlayfs fuse3 acl e2fsprogs util-linux \
            nix-bin libvirt-clients libxml2-utils systemd man-db mandoc groff-base bash-completion zsh fish \
            python3-bpfcc linux-headers-amd64 \
            qemu-system-x86 qemu-utils seabios qemu-system-data busybox-static cpio xz-utils zstd \
            chromium fonts-dejavu-core sqlite3

export FLAGSHIM_CACHE := $(CACHE)

.PHONY: help setup demo test lint check man bench qemu-unpatched test-unpatched test-suites vendor clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## Debian packages, .venv with flagshim in it

$(READY): pyproject.toml Makefile
	$(SUDO) apt-get update -qq
	DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $(PACKAGES) >/dev/null
	[ -x $(PYTHON) ] || /usr/bin/python3 -m venv --system-site-packages $(VENV)
	$(PYTHON) -m pip install -q -e '.[dev]'
	touch $@

demo: $(READY)  ## boot a guest on Debian's QEMU without and with flagshim, show the table
	$(PYTHON) -m tests.guest.demo

test: $(READY)  ## all tests but those of the unpatched QEMU
	$(PYTHON) -m pytest -m 'not unpatched'

lint: $(READY)  ## ruff and mypy
	$(PYTHON) -m ruff check flagshim tests
	$(PYTHON) -m ruff format --check flagshim tests
	$(PYTHON) -m mypy

check: lint test  ## lint and test

man: $(READY)  ## write the man page and the completions anew, after a change of --help
	$(PYTHON) docs/man/make-man
	_FLAGSHIM_COMPLETE=bash_source $(VENV)/bin/flagshim > completion/flagshim
	# As click has it, a file found by fpath does nothing when it is called for the second time.
	_FLAGSHIM_COMPLETE=zsh_source $(VENV)/bin/flagshim | sed '/^if .*zsh_eval_context/,$$d' > completion/_flagshim
	echo '_flagshim_completion "$$@"' >> completion/_flagshim
	_FLAGSHIM_COMPLETE=fish_source $(VENV)/bin/flagshim > completion/flagshim.fish

bench: $(READY)  ## native, preload, strace and flagshim side by side: ratios
	$(PYTHON) -m tests.bench

qemu-unpatched: $(CACHE)/qemu-unpatched/qemu-system-x86_64  ## build a QEMU without the EPERM fallback (minutes, cached)

$(CACHE)/qemu-unpatched/qemu-system-x86_64: | $(READY)
	tests/guest/build-unpatched-qemu $(CACHE)/qemu-unpatched

test-unpatched: $(READY) qemu-unpatched  ## boot the guest on that QEMU, without and with flagshim
	$(PYTHON) -m pytest -m unpatched tests/guest

test-suites: $(READY)  ## suites of other programs, natively and under flagshim: the same results? (an hour)
	$(PYTHON) -m tests.suites

vendor:  ## fetch the libraries of the HTML report anew (npm)
	scratch=$$(mktemp -d) && here=$(CURDIR)/flagshim/reports/page/vendor && cd $$scratch && \
	npm pack --silent tabulator-tables@6.5.3 uplot@1.6.32 >/dev/null && \
	tar xzf tabulator-tables-*.tgz && cp package/dist/js/tabulator.min.js package/dist/css/tabulator_simple.min.css $$here && \
	cp package/LICENSE $$here/tabulator.LICENSE && rm -r package && \
	tar xzf uplot-*.tgz && cp package/dist/uPlot.iife.min.js package/dist/uPlot.min.css $$here && \
	cp package/LICENSE $$here/uPlot.LICENSE && rm -r $$scratch

clean:  ## remove .venv and caches in the tree; $FLAGSHIM_CACHE stays
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
