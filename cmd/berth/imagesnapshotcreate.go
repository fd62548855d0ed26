package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"

	"berth.dev/berth/internal/program"
	imagesnapshotv1 "berth.dev/berth/proto/berth/imagesnapshot/v1"
)

// specFlags are the flags of create and update that make up a spec.
type specFlags struct {
	images, platforms, plainHTTP, skipVerify, dns []string
	secrets, parameters                           map[string]string
	size, elimination                             string
	retention, timeout, copies, flashCopies       int32
	reuse, flash                                  bool
}

func (s *specFlags) register(f *pflag.FlagSet) {
	f.StringArrayVarP(&s.images, "image", "i", nil, "image `reference`; may be repeated")
	f.StringSliceVar(&s.platforms, "platform", nil, "`platform` of the images, such as linux/arm64; may be repeated (default: that of the building machine)")
	f.StringVar(&s.size, "size", "", "`GiB` of the volume, 20 to 400, or \"auto\" for as large as needed (default: the installation's, 20)")
	f.Int32Var(&s.retention, "retention-days", 0, "`days` after which it expires, up to 10000; 0 is never")
	f.StringSliceVar(&s.plainHTTP, "plain-http", nil, "`registry` host[:port] to speak HTTP with; may be repeated")
	f.StringSliceVar(&s.skipVerify, "insecure-skip-verify", nil, "`registry` host[:port] whose certificate is not checked; may be repeated")
	pairsVar(f, &s.secrets, "registry-secret", "", "`registry=name` of credentials that the build environment knows; may be repeated")
	f.Int32Var(&s.timeout, "build-timeout", 0, "`minutes` after which a build is given up, 30 to 10080 (default: the installation's, 1440)")
	f.StringSliceVar(&s.dns, "dns", nil, "`address` of a DNS server for the build; may be repeated")
	pairsVar(f, &s.parameters, "parameter", "", "`key=value` for the storage that keeps it; csi/KEY is a parameter of a CSI driver's volume; may be repeated")
	f.BoolVar(&s.reuse, "reuse-layers", true, "start from the image snapshot that shares most layers")
	f.BoolVar(&s.flash, "flash", false, "make it usable before the volume snapshot is complete")
	f.StringVar(&s.elimination, "elimination", "none", "none, or lru to make room for others when the quota is used up")
	f.Int32Var(&s.copies, "copies", 0, "`number` of volume snapshots, 1 to 10 (default 1)")
	f.Int32Var(&s.flashCopies, "flash-copies", 0, "`number` of temporary volume snapshots with --flash, 1 to 10 (default 1)")
}

// apply sets the parts of a spec whose flags were given. For a new spec, all flags count as given.
func (s *specFlags) apply(spec *imagesnapshotv1.ImageSnapshotSpec, given func(flag string) bool) error {
	if slices.Contains(s.images, "") {
		return program.Usage(errors.New("--image \"\" names no image"))
	}
	if spec.Build == nil {
		spec.Build = &imagesnapshotv1.BuildSpec{}
	}
	for flag, set := range map[string]func(){
		"image":          func() { spec.Images = s.images },
		"platform":       func() { spec.Platforms = s.platforms },
		"retention-days": func() { spec.RetentionDays = s.retention },
		"build-timeout":  func() { spec.Build.TimeoutMinutes = s.timeout },
		"dns":            func() { spec.Build.DnsServers = s.dns },
		"parameter":      func() { spec.Build.Parameters = s.parameters },
		"reuse-layers":   func() { spec.ReuseLayers = s.reuse },
		"flash":          func() { spec.Flash = s.flash },
		"copies":         func() { spec.StandardCopies = s.copies },
		"flash-copies":   func() { spec.FlashCopies = s.flashCopies },
	} {
		if given(flag) {
			set()
		}
	}
	if given("plain-http") || given("insecure-skip-verify") || given("registry-secret") {
		spec.Registries = s.registries()
	}
	if given("size") {
		if err := s.applySize(spec); err != nil {
			return err
		}
	}
	if given("elimination") {
		switch s.elimination {
		case "none":
			spec.Elimination = imagesnapshotv1.EliminationStrategy_ELIMINATION_STRATEGY_UNSPECIFIED
		case "lru", "LRU":
			spec.Elimination = imagesnapshotv1.EliminationStrategy_ELIMINATION_STRATEGY_LRU
		default:
			return program.Usage(fmt.Errorf("--elimination %q is neither none nor lru", s.elimination))
		}
	}
	return nil
}

func (s *specFlags) applySize(spec *imagesnapshotv1.ImageSnapshotSpec) error {
	spec.SizeGib, spec.SizeAsNeeded = 0, s.size == "auto"
	if s.size == "auto" || s.size == "" {
		return nil
	}
	gib, err := strconv.ParseInt(strings.TrimSuffix(s.size, "GiB"), 10, 32)
	if err != nil || gib <= 0 {
		return program.Usage(fmt.Errorf("--size %q is neither a number of GiB nor auto", s.size))
	}
	spec.SizeGib = int32(gib)
	return nil
}

func (s *specFlags) registries() []*imagesnapshotv1.RegistryAccess {
	all := make(map[string]*imagesnapshotv1.RegistryAccess)
	at := func(server string) *imagesnapshotv1.RegistryAccess {
		if all[server] == nil {
			all[server] = &imagesnapshotv1.RegistryAccess{Server: server}
		}
		return all[server]
	}
	for _, server := range s.plainHTTP {
		at(server).PlainHttp = true
	}
	for _, server := range s.skipVerify {
		at(server).InsecureSkipVerify = true
	}
	for server, name := range s.secrets {
		at(server).Secret = name
	}
	var list []*imagesnapshotv1.RegistryAccess
	for _, server := range sortedKeys(all) {
		list = append(list, all[server])
	}
	return list
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func newImageSnapshotCreate() *cobra.Command {
	var (
		daemon       daemonFlags
		spec         specFlags
		req          = &imagesnapshotv1.CreateImageSnapshotRequest{Spec: &imagesnapshotv1.ImageSnapshotSpec{}}
		wait, asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "create NAME --image REFERENCE...",
		Short: "Make an image snapshot of container images",
		Long: `create asks berthd for an image snapshot and returns at once, with --wait when it is usable or has failed. berthd fetches and
unpacks the images in the background; "berth image-snapshot get" and "events" show how far it is.

Names have 1 to 128 of a-z, 0-9 and '-', and begin with a letter. A request with illegal values is refused, and the error names every such field; --dry-run only
checks. With --client-token the command can be repeated safely: it finds what the first one made.`,
		Example: "  berth image-snapshot create nightly --image nginx:1.27 --image redis:7 --retention-days 7 --wait\n" +
			"  berth image-snapshot create models --image registry.example/llm:v3 --size auto --registry-secret registry.example=team",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name = args[0]
			if err := spec.apply(req.GetSpec(), func(string) bool { return true }); err != nil {
				return err
			}
			return daemon.imageSnapshots(cmd.Context(), func(ctx context.Context, c imageSnapshots) error {
				resp, err := c.CreateImageSnapshot(ctx, req)
				if err != nil {
					return err
				}
				return follow(ctx, cmd, c, resp.GetImageSnapshot(), resp.GetWarnings(), followFlags{wait: wait, asJSON: asJSON, dryRun: req.GetDryRun(), word: "accepted"})
			})
		},
	}
	daemon.register(cmd)
	f := cmd.Flags()
	spec.register(f)
	pairsVar(f, &req.Labels, "label", "l", "`key=value` to list by; may be repeated")
	pairsVar(f, &req.Annotations, "annotation", "", "`key=value` to keep with it; may be repeated")
	f.StringVar(&req.Owner, "owner", "", "`tenant` that it belongs to")
	f.StringVar(&req.ClientToken, "client-token", "", "`token` that makes repeating the command safe")
	f.BoolVar(&req.DryRun, "dry-run", false, "check, and do nothing")
	f.BoolVarP(&wait, "wait", "w", false, "show progress and return when it is usable; fail if it cannot become usable")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	if err := cmd.MarkFlagRequired("image"); err != nil {
		cmd.RunE = func(*cobra.Command, []string) error { return err }
	}
	return cmd
}

func newImageSnapshotUpdate() *cobra.Command {
	var (
		daemon              daemonFlags
		spec                specFlags
		labels, annotations map[string]string
		req                 = &imagesnapshotv1.UpdateImageSnapshotRequest{}
		version             string
		wait, asJSON        bool
	)
	cmd := &cobra.Command{
		Use:               "update NAME|ID",
		ValidArgsFunction: completeOne(daemon.imageSnapshotNames),
		Short:             "Change an image snapshot, or build it anew",
		Long: `update changes what is given and leaves the rest. If that changes what is on the disk, berthd builds it anew and switches
when that has succeeded; until then, and if it fails, the old content stays. --rebuild takes up what tags mean by now.

An update is possible when the image snapshot is Available or UpdateFailed. It is refused if somebody else changed the image
snapshot meanwhile.`,
		Example: "  berth image-snapshot update nightly --rebuild --wait\n  berth image-snapshot update nightly --image nginx:1.28 --image redis:7",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			given := cmd.Flags().Changed
			return daemon.imageSnapshots(cmd.Context(), func(ctx context.Context, c imageSnapshots) error {
				got, err := c.GetImageSnapshot(ctx, &imagesnapshotv1.GetImageSnapshotRequest{NameOrId: args[0]})
				if err != nil {
					return err
				}
				have := got.GetImageSnapshot()
				req.NameOrId, req.Spec = have.GetName(), proto.CloneOf(have.GetSpec())
				req.Preconditions = &imagesnapshotv1.Preconditions{Id: have.GetId(), ResourceVersion: have.GetResourceVersion()}
				if version != "" {
					req.Preconditions.ResourceVersion = version
				}
				if err := spec.apply(req.GetSpec(), given); err != nil {
					return err
				}
				if given("label") {
					req.Labels = &imagesnapshotv1.StringMap{Entries: labels}
				}
				if given("annotation") {
					req.Annotations = &imagesnapshotv1.StringMap{Entries: annotations}
				}
				return change(ctx, cmd, c, have, req, followFlags{wait: wait, asJSON: asJSON, dryRun: req.GetDryRun(), word: "changed"})
			})
		},
	}
	daemon.register(cmd)
	f := cmd.Flags()
	spec.register(f)
	pairsVar(f, &labels, "label", "l", "new labels instead of all old ones, `key=value`; may be repeated")
	pairsVar(f, &annotations, "annotation", "", "new annotations instead of all old ones, `key=value`; may be repeated")
	f.BoolVar(&req.Rebuild, "rebuild", false, "build anew even if nothing is changed")
	f.StringVar(&version, "if-version", "", "only if it is at this resource `version` (default: the one that was just read)")
	f.BoolVar(&req.DryRun, "dry-run", false, "check, and do nothing")
	f.BoolVarP(&wait, "wait", "w", false, "show progress and return when it is usable; fail if it cannot become usable")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// change asks for an update, unless the update would change nothing.
func change(ctx context.Context, cmd *cobra.Command, c imageSnapshots, have *imagesnapshotv1.ImageSnapshot, req *imagesnapshotv1.UpdateImageSnapshotRequest, f followFlags) error {
	asked, dryRun := have.GetSpec(), req.GetDryRun() // the request has a copy
	req.DryRun = true
	resp, err := c.UpdateImageSnapshot(ctx, req)
	if err != nil {
		return err
	}
	would := resp.GetImageSnapshot()
	if !req.GetRebuild() && proto.Equal(asked, would.GetSpec()) && maps.Equal(have.GetLabels(), would.GetLabels()) &&
		maps.Equal(have.GetAnnotations(), would.GetAnnotations()) && would.GetStatus().GetPhase() == have.GetStatus().GetPhase() {
		f.word, f.wait, f.dryRun = "unchanged", false, false
		return follow(ctx, cmd, c, have, resp.GetWarnings(), f)
	}
	if !dryRun {
		req.DryRun = false
		if resp, err = c.UpdateImageSnapshot(ctx, req); err != nil {
			return err
		}
	}
	return follow(ctx, cmd, c, resp.GetImageSnapshot(), resp.GetWarnings(), f)
}

// followFlags say what create and update do after the answer.
type followFlags struct {
	wait, asJSON, dryRun bool
	word                 string
}

func follow(ctx context.Context, cmd *cobra.Command, c imageSnapshots, s *imagesnapshotv1.ImageSnapshot, warnings []string, f followFlags) error {
	for _, w := range warnings {
		cmd.PrintErrln("warning: " + w)
	}
	var failure error
	if f.wait && !f.dryRun {
		last, err := awaitUsable(ctx, c, s.GetId(), cmd.ErrOrStderr())
		if last == nil {
			return err
		}
		s, f.word, failure = last, "usable", err
	}
	if f.asJSON {
		if err := writeMessage(cmd.OutOrStdout(), s); err != nil {
			return err
		}
		return failure
	}
	if failure != nil {
		return failure
	}
	if f.dryRun {
		f.word = "would be " + f.word
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: %s, %s, ID %s\n", s.GetName(), f.word, phaseWord(s.GetStatus().GetPhase()), s.GetId())
	return err
}
