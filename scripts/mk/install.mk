# Install into a system, or with DESTDIR into a package's tree.
PREFIX        ?= /usr/local
BINDIR        ?= $(PREFIX)/bin
DOCDIR        ?= $(PREFIX)/share/doc/berth
SYSCONFDIR    ?= /etc
UNITDIR       ?= $(if $(filter /usr,$(PREFIX)),/usr/lib/systemd/system,/etc/systemd/system)
BASHCOMPDIR   ?= $(PREFIX)/share/bash-completion/completions
ZSHCOMPDIR    ?= $(PREFIX)/share/zsh/site-functions
FISHCOMPDIR   ?= $(PREFIX)/share/fish/vendor_completions.d
MANDIR        ?= $(PREFIX)/share/man/man1
INSTALL       ?= install
# Where the two binaries are that get installed; "make build" puts them there.
BUILDDIR      ?= bin

INSTALLED := $(BINDIR)/berth $(BINDIR)/berthd $(UNITDIR)/berthd.service $(UNITDIR)/containerd.service.d/berth.conf \
	$(DOCDIR)/operations.md $(DOCDIR)/drivers.md $(DOCDIR)/config.toml $(BASHCOMPDIR)/berth $(ZSHCOMPDIR)/_berth \
	$(FISHCOMPDIR)/berth.fish

.PHONY: install uninstall
install: ## install binaries, units, manual pages, completion and docs (PREFIX, DESTDIR)
	@test -x $(BUILDDIR)/berth -a -x $(BUILDDIR)/berthd || { echo "nothing built in $(BUILDDIR): run \"make build\" first" >&2; exit 1; }
	$(INSTALL) -D -m 0755 $(BUILDDIR)/berth $(DESTDIR)$(BINDIR)/berth
	$(INSTALL) -D -m 0755 $(BUILDDIR)/berthd $(DESTDIR)$(BINDIR)/berthd
	$(INSTALL) -d -m 0755 $(DESTDIR)$(UNITDIR) $(DESTDIR)$(SYSCONFDIR)/berth
	sed -e 's|@BINDIR@|$(BINDIR)|' -e 's|@DOCDIR@|$(DOCDIR)|' systemd/berthd.service > $(DESTDIR)$(UNITDIR)/berthd.service
	chmod 0644 $(DESTDIR)$(UNITDIR)/berthd.service
	$(INSTALL) -D -m 0644 systemd/containerd.service.d/berth.conf $(DESTDIR)$(UNITDIR)/containerd.service.d/berth.conf
	$(INSTALL) -D -m 0644 docs/operations.md $(DESTDIR)$(DOCDIR)/operations.md
	$(INSTALL) -D -m 0644 docs/drivers.md $(DESTDIR)$(DOCDIR)/drivers.md
	$(BUILDDIR)/berthd config default > $(DESTDIR)$(DOCDIR)/config.toml
	$(INSTALL) -d -m 0755 $(DESTDIR)$(BASHCOMPDIR) $(DESTDIR)$(ZSHCOMPDIR) $(DESTDIR)$(FISHCOMPDIR) $(DESTDIR)$(MANDIR)
	$(BUILDDIR)/berth completion bash > $(DESTDIR)$(BASHCOMPDIR)/berth
	$(BUILDDIR)/berth completion zsh > $(DESTDIR)$(ZSHCOMPDIR)/_berth
	$(BUILDDIR)/berth completion fish > $(DESTDIR)$(FISHCOMPDIR)/berth.fish
	$(BUILDDIR)/berth manual $(DESTDIR)$(MANDIR)
	$(BUILDDIR)/berthd manual $(DESTDIR)$(MANDIR)
	chmod 0644 $(addprefix $(DESTDIR),$(DOCDIR)/config.toml $(BASHCOMPDIR)/berth $(ZSHCOMPDIR)/_berth $(FISHCOMPDIR)/berth.fish)
	test -e $(DESTDIR)$(SYSCONFDIR)/berth/config.toml || \
		$(INSTALL) -m 0600 $(DESTDIR)$(DOCDIR)/config.toml $(DESTDIR)$(SYSCONFDIR)/berth/config.toml
	@test -n "$(DESTDIR)" || echo "Now: mkdir -p /etc/containerd/conf.d; berth config containerd > /etc/containerd/conf.d/berth.toml; systemctl daemon-reload;" \
		"systemctl enable --now berthd; systemctl restart containerd; berth doctor"

uninstall: ## remove what install put there, but not the configuration and the state
	rm -f $(addprefix $(DESTDIR),$(INSTALLED)) $(DESTDIR)$(MANDIR)/berth.1 $(DESTDIR)$(MANDIR)/berth-*.1 $(DESTDIR)$(MANDIR)/berthd.1 $(DESTDIR)$(MANDIR)/berthd-*.1
	-rmdir $(DESTDIR)$(UNITDIR)/containerd.service.d $(DESTDIR)$(DOCDIR) $(DESTDIR)$(SYSCONFDIR)/berth 2>/dev/null
