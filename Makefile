# Every target installs what it needs itself: Debian packages when one is
# missing (packaging/need-packages says how it keeps its hands off the
# machine's services), Python packages into .venv. Nothing else on the machine
# changes, but for "install" and "uninstall".

PYTHON ?= /usr/bin/python3
VENV := .venv
RUN := $(VENV)/bin/python
# where "install" puts things; a package build sets DESTDIR too
PREFIX ?= /usr/local
DESTDIR ?=
SYSCONFDIR ?= /etc
# another version number for a test of upgrades: make deb DEB_VERSION=0.1.1~test
DEB_VERSION ?=

# pytest rewrites each test's asserts, and keeps the result as bytecode: 3 s less in every further run
unexport PYTHONDONTWRITEBYTECODE

NEED := packaging/need-packages
# systemd-python is compiled; gcc alone brings no C library headers
VENV_PACKAGES := python3 python3-venv python3-dev gcc libc6-dev pkg-config libsystemd-dev
BUNDLE_PACKAGES := python3 python3-venv
DEB_PACKAGES := $(BUNDLE_PACKAGES) dpkg-dev
# programs that the daemon runs with. strongSwan's unit need not be enabled: the daemon's unit asks for it
INSTALL_PACKAGES := $(BUNDLE_PACKAGES) python3-systemd nftables iproute2 \
	charon-systemd strongswan-swanctl libstrongswan-standard-plugins
# a real charon, a real target and programs that read their packets
LAB_PACKAGES := charon-systemd strongswan-swanctl libcharon-extra-plugins \
	libstrongswan-extra-plugins libstrongswan-standard-plugins \
	tgt libiscsi-bin open-iscsi nftables iproute2 tcpdump procps
LINT_PACKAGES := shellcheck
# systemd: systemd-analyze reads the units; python3-systemd: the .deb's launchers are run
# bash-completion, zsh: the shells whose keys are pressed; prometheus: promtool reads the alerts
TEST_PACKAGES := $(LAB_PACKAGES) $(LINT_PACKAGES) $(DEB_PACKAGES) lintian systemd python3-systemd \
	bash-completion zsh prometheus

.PHONY: help
help:
	@echo 'make demo       a real iSCSI login through ESP in network namespaces, and its proof'
	@echo 'make test       every test that needs no VM: lint, types, unit, wire, real charon, package'
	@echo 'make unit       the tests of pure code and of the loop, in seconds; nothing installed but .venv'
	@echo 'make test-vm    the end-to-end suite on two virtual machines; test-vm-full: with every combination and fault'
	@echo 'make chaos      a thousand faults in a row (CHAOS_SEED=, CHAOS_STEPS=); make test has a few'
	@echo 'make oracle     100,000 random worlds against a second opinion (ORACLE_SEED=, ORACLE_WORLDS=)'
	@echo 'make bench      benchmarks, as ratios against swanctl and a bare VICI client'
	@echo 'make bench-vm   throughput of iSCSI, and how long it stands still after restarts and kills, on two virtual machines'
	@echo 'make fuzz       a million inputs for everything that reads what others wrote (hours)'
	@echo 'make coverage   the tests once more, counting; fails under 100 % of the core, 95 % of all'
	@echo 'make mutants    changes what decides in thousands of places; a fast test falls each time (MODULES=)'
	@echo 'make lock       the versions that tests run with, anew'
	@echo 'make lint       ruff, mypy, the layers, shellcheck'
	@echo 'make completion writes etc/completion anew, from the options of the command'
	@echo 'make catalog    writes the journal catalog anew, from docs/problems.md and docs/journal.md'
	@echo 'make format     lets ruff lay the code out'
	@echo 'make deb        dist/iscsi-ipsec_VERSION_all.deb'
	@echo 'make install    from source, under PREFIX=$(PREFIX); honours DESTDIR'
	@echo 'make uninstall  takes that away again, and opens the guard'
	@echo 'make clean      removes what make made here'

# --- the environment --------------------------------------------------------

VENV_STAMP := $(VENV)/.installed
# a copied or moved checkout carries a .venv that points to the old place
ifeq ($(shell grep -qsF '$(CURDIR)/$(VENV)' $(VENV)/bin/activate && echo here),)
$(VENV_STAMP): FORCE
endif

$(VENV_STAMP): pyproject.toml packaging/test-constraints.txt
	@$(NEED) $(VENV_PACKAGES)
	@grep -qsF '$(CURDIR)/$(VENV)' $(VENV)/bin/activate && $(RUN) -c '' 2>/dev/null || \
		$(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --use-pep517 \
		--constraint packaging/test-constraints.txt --editable '.[test,lint]'
	@touch $@

.PHONY: FORCE
FORCE:

.PHONY: venv
venv: $(VENV_STAMP)

# --- running ----------------------------------------------------------------

.PHONY: demo
demo: $(VENV_STAMP)
	@$(NEED) $(LAB_PACKAGES)
	$(RUN) -m tests.support.demo

# CHAOS_SEED=N repeats a run, CHAOS_STEPS=N is how long it gets
.PHONY: chaos
chaos: $(VENV_STAMP)
	@$(NEED) $(LAB_PACKAGES)
	$(RUN) -m tests.chaos

# prints in which share of the worlds each rule decided; make test has a few hundred
.PHONY: oracle
oracle: $(VENV_STAMP)
	ORACLE_WORLDS=$${ORACLE_WORLDS:-100000} $(RUN) -m pytest tests/property/test_oracle.py -q -s

.PHONY: bench
bench: $(VENV_STAMP)
	@$(NEED) $(LAB_PACKAGES)
	$(RUN) -m tests.bench

.PHONY: lint
lint: $(VENV_STAMP)
	@$(NEED) $(LINT_PACKAGES)
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports --no-logo
	packaging/shell-scripts -print0 | xargs -0 shellcheck

.PHONY: format
format: $(VENV_STAMP)
	$(RUN) -m ruff format
	$(RUN) -m ruff check --fix --select I

# after a change of the command's options, or of the texts about problems; tests fail where it was forgotten
.PHONY: completion catalog
completion: $(VENV_STAMP)
	$(RUN) packaging/completion etc/completion

catalog: $(VENV_STAMP)
	$(RUN) packaging/catalog systemd/iscsi-ipsec.catalog

# the versions that tests run with, taken anew from what pyproject.toml allows
.PHONY: lock
lock:
	@$(NEED) $(VENV_PACKAGES)
	PYTHON='$(PYTHON)' packaging/lock

.PHONY: fuzz
fuzz: $(VENV_STAMP)
	nice $(RUN) -m tests.fuzz --jobs $$(nproc)

# thousands of changes to what decides, and whether a fast test falls each time; MODULES="core.ike.key_rotation core.ike.charon_diff" for some
.PHONY: mutants
mutants: $(VENV_STAMP)
	$(RUN) -m pip install --quiet --disable-pip-version-check --use-pep517 \
		--constraint packaging/test-constraints.txt --editable '.[test,lint,mutants]'
	nice $(RUN) -m tests.support.mutants $(MODULES)

# the tests once more under coverage, daemons and commands that they start included
.PHONY: coverage
coverage: $(VENV_STAMP) $(OLD_PYROUTE2)
	@$(NEED) $(TEST_PACKAGES)
	rm -rf build/coverage
	mkdir -p build/coverage
	$(RUN) -m coverage run -m pytest --numprocesses auto --dist loadfile
	$(RUN) -m coverage combine --quiet
	$(RUN) -m coverage report --include='*/iscsi_ipsec/core/*' --show-missing --skip-covered --fail-under=100
	$(RUN) -m coverage report --show-missing --skip-covered --fail-under=95

# No Debian package is needed; a test that finds its program missing (nft) is skipped. One process: half of the time
# is pytest's own, which each further process spends again (22 s of CPU with two, 12 s with one). Files in memory:
# thousands of fsyncs and removals take 10 s on a disk
.PHONY: unit
unit: $(VENV_STAMP)
	$(if $(wildcard /dev/shm/.),TMPDIR=/dev/shm) ORACLE_WORLDS=300 \
		$(RUN) -m pytest -o tmp_path_retention_policy=failed --hypothesis-profile=quick -m 'not slow' tests/unit tests/property

# the oldest pyroute2 that we take, beside the newest one in .venv
OLD_PYROUTE2 := build/pyroute2-0.7.2
$(OLD_PYROUTE2): $(VENV_STAMP)
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --target $@ pyroute2==0.7.2
	@touch $@

.PHONY: test
test: lint $(OLD_PYROUTE2)
	@$(NEED) $(TEST_PACKAGES)
	$(RUN) -m pytest --numprocesses auto --dist loadfile

.PHONY: test-vm test-vm-full
test-vm-full: export VM_FULL = 1
test-vm test-vm-full: $(VENV_STAMP) deb
	VM_DEB="$$(ls -t dist/iscsi-ipsec_*_all.deb | head -n 1)" tests/vm/run

.PHONY: bench-vm
bench-vm: $(VENV_STAMP) deb
	VM_BENCH=1 VM_DEB="$$(ls -t dist/iscsi-ipsec_*_all.deb | head -n 1)" tests/vm/run tests/vm/test_throughput.py tests/vm/test_gaps.py

# --- packages ---------------------------------------------------------------

.PHONY: deb
deb:
	@$(NEED) $(DEB_PACKAGES)
	PYTHON='$(PYTHON)' DEB_VERSION='$(DEB_VERSION)' packaging/deb/build dist

.PHONY: install
install:
	@$(NEED) $(if $(DESTDIR),$(BUNDLE_PACKAGES),$(INSTALL_PACKAGES))
	PYTHON='$(PYTHON)' packaging/bundle build/bundle
	PYTHON='$(PYTHON)' PREFIX='$(PREFIX)' SYSCONFDIR='$(SYSCONFDIR)' DESTDIR='$(DESTDIR)' \
		packaging/install-tree build/bundle
	@PYTHON='$(PYTHON)' PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' packaging/after-install

.PHONY: uninstall
uninstall:
	PREFIX='$(PREFIX)' SYSCONFDIR='$(SYSCONFDIR)' DESTDIR='$(DESTDIR)' packaging/uninstall

.PHONY: clean
clean:
	rm -rf build dist $(VENV) .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
	rm -rf daemon/*.egg-info
