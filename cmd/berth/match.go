package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"berth.dev/berth/internal/program"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
	imagesnapshotv1 "berth.dev/berth/proto/berth/imagesnapshot/v1"
	"berth.dev/berth/proto/enumword"
)

func newMatch() *cobra.Command {
	var (
		daemon daemonFlags
		q      matchQuery
	)
	cmd := &cobra.Command{
		Use:   "match IMAGE...",
		Short: "Show which image snapshots would be chosen for images, and why",
		Long: `match shows which image snapshots would be used for a pod with these images, and why, candidate by candidate. It changes
nothing, except with --create-if-missing: then the automatic image snapshot of all the images is asked for if nothing matches, as
annotations can ask for it (berth.dev/create-if-missing). It is made once, whoever asks.

Annotations are those of a pod, in any dialect that berthd knows (berth.dev/…, and those of the clouds). Without any that
speak of it, automatic matching is asked for; --no-auto-match leaves it to berthd's setting, which is off unless
matching.auto_match is true.

What berthd answers is what it would choose for a pull, by all its catalogs and the disks that are attached. Layers that
containerd has already count as if it had not, unless --present is given: a pull does not ask for them.

The images' layers are looked up on the attached disks, in containerd, and at the registry. With --names-only, or for an image
that is not found, only names and tags are compared.

The exit status is 3 if the annotations have the pod refused.`,
		Example: "  berth match nginx:1.27 redis:7\n" +
			"  berth match nginx:1.27 --annotation berth.dev/snapshot=nightly --annotation berth.dev/reject-if-unavailable=true\n" +
			"  berth match nginx:1.27 --annotation cci.io/image-snapshot-auto-match=true --order quantity",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return daemon.dial(cmd.Context(), func(ctx context.Context, conn connection) error { return q.ask(ctx, cmd, conn, args) })
		},
	}
	daemon.register(cmd)
	f := cmd.Flags()
	q.images.register(f)
	q.create.register(f)
	pairsVar(f, &q.req.Annotations, "annotation", "", "`key=value` of the pod; may be repeated")
	pairsVar(f, &q.req.Labels, "pod-label", "", "label of the pod, `key=value`; may be repeated")
	f.StringVar(&q.order, "order", "", "compare by saved, size, quantity or degree, whatever the annotations say")
	f.Int32Var(&q.req.Explain, "explain", 0, "`number` of candidates to explain (default 20); -1 for the chosen ones only")
	f.BoolVar(&q.noAutoMatch, "no-auto-match", false, "leave automatic matching to the annotations and to berthd's settings")
	cmd.MarkFlagsMutuallyExclusive("names-only", "present")
	f.BoolVar(&q.asJSON, "json", false, "print JSON")
	return cmd
}

// statusRefused is the exit status of "match" if the rules refuse the pod.
const statusRefused = 3

// matchQuery is one question, and what to do with the answer.
type matchQuery struct {
	images      wantedImages
	req         imagesnapshotv1.MatchImagesRequest
	create      creation
	order       string
	noAutoMatch bool
	asJSON      bool
}

func (q *matchQuery) ask(ctx context.Context, cmd *cobra.Command, conn connection, refs []string) error {
	var err error
	if q.req.Order, err = matchOrder(q.order); err != nil {
		return err
	}
	q.req.AutoMatch = !q.noAutoMatch
	for _, ref := range refs {
		img, err := q.images.image(ctx, cmd, ref, controlv1.NewControlServiceClient(conn))
		if err != nil {
			return err
		}
		q.req.Images = append(q.req.Images, img)
	}
	client := imagesnapshotv1.NewImageSnapshotServiceClient(conn)
	resp, err := client.MatchImages(ctx, &q.req)
	if err != nil {
		return err
	}
	write := writeMatch
	if q.asJSON {
		write = func(w io.Writer, m *imagesnapshotv1.MatchImagesResponse) error { return writeMessage(w, m) }
	}
	if err := write(cmd.OutOrStdout(), resp); err != nil {
		return err
	}
	if resp.GetOutcome() == imagesnapshotv1.MatchOutcome_MATCH_OUTCOME_REJECT {
		return program.WithStatus(statusRefused, fmt.Errorf("the pod would be refused: %s", resp.GetReason()))
	}
	if !q.create.wanted || !resp.GetNothingMatched() {
		return nil
	}
	return q.create.ensure(ctx, cmd, client, refs, &q.images.resolver)
}

// matchOrder returns the order that a word names. An empty word leaves the order to the annotations.
func matchOrder(word string) (imagesnapshotv1.MatchOrder, error) {
	for value := range imagesnapshotv1.MatchOrder_name {
		if order := imagesnapshotv1.MatchOrder(value); enumword.Of(order) == word {
			return order, nil
		}
	}
	return 0, program.Usage(fmt.Errorf("--order %q: want saved, size, quantity or degree", word))
}

// creation says how to create image snapshots for images that nothing matches.
type creation struct {
	wanted  bool
	owner   string
	secrets map[string]string
}

func (c *creation) register(f *pflag.FlagSet) {
	f.BoolVar(&c.wanted, "create-if-missing", false, "ask for an automatic image snapshot of the images if nothing matches")
	f.StringVar(&c.owner, "owner", "", "`tenant` that the automatic image snapshot belongs to")
	pairsVar(f, &c.secrets, "registry-secret", "", "`registry=name` of credentials for the automatic image snapshot; may be repeated")
}

// ensure asks for the creation and reports it on standard error, because standard output has the result of the match.
func (c *creation) ensure(ctx context.Context, cmd *cobra.Command, client imageSnapshots, images []string, r *resolver) error {
	every := func(host string) bool { return host == "*" }
	access := specFlags{
		plainHTTP: slices.DeleteFunc(slices.Clone(r.plainHTTP), every), skipVerify: slices.DeleteFunc(slices.Clone(r.skipVerify), every), secrets: c.secrets,
	}
	req := &imagesnapshotv1.EnsureAutomaticImageSnapshotRequest{Owner: c.owner, Images: images, Registries: access.registries()}
	if r.platform != "" {
		req.Platforms = []string{r.platform}
	}
	resp, err := client.EnsureAutomaticImageSnapshot(ctx, req)
	if err != nil {
		return err
	}
	s, word := resp.GetImageSnapshot(), "is being made"
	if resp.GetExisting() {
		word = "is there already, " + phaseWord(s.GetStatus().GetPhase())
	}
	cmd.PrintErrf("%s: the automatic image snapshot of these images %s\n", s.GetName(), word)
	return nil
}

// wantedImages are the images to look up and then match.
type wantedImages struct {
	resolver
	namesOnly, present bool
	snapshotter        string
}

func (w *wantedImages) register(f *pflag.FlagSet) {
	w.resolver.register(f)
	f.BoolVar(&w.namesOnly, "names-only", false, "do not look up the images' layers")
	f.BoolVar(&w.present, "present", false, "leave out what containerd has unpacked already, as a pull does")
	f.StringVar(&w.snapshotter, "snapshotter", "berth", "`name` of the proxy plugin in containerd, for --present")
}

// image returns what is known of one image: only its name if it is not found.
func (w *wantedImages) image(ctx context.Context, cmd *cobra.Command, ref string, c controlv1.ControlServiceClient) (*imagesnapshotv1.MatchImage, error) {
	img := &imagesnapshotv1.MatchImage{Reference: ref, Platform: w.platform}
	if w.namesOnly {
		return img, nil
	}
	found, err := w.find(ctx, ref, c)
	if err != nil {
		cmd.PrintErrf("%s: only its name is compared: %s\n", ref, strings.ReplaceAll(err.Error(), "\n", "; "))
		return img, nil
	}
	img.ManifestDigest, img.Layers = found.Manifest.String(), matchLayers(found)
	if !w.present {
		return img, nil
	}
	has, err := w.snapshots(ctx, w.snapshotter, found)
	if err != nil {
		return nil, fmt.Errorf("ask containerd what it has of %s: %w", ref, err)
	}
	for i := range has {
		img.Layers[i].Present = has[i]
	}
	return img, nil
}

func matchLayers(l *imageLayers) []*imagesnapshotv1.MatchLayer {
	var layers []*imagesnapshotv1.MatchLayer
	for i, d := range l.DiffIDs {
		layers = append(layers, &imagesnapshotv1.MatchLayer{DiffId: d.String(), BlobDigest: l.Blobs[i].Digest.String(), BlobBytes: l.Blobs[i].Size})
	}
	return layers
}

func writeMatch(w io.Writer, m *imagesnapshotv1.MatchImagesResponse) error {
	var b strings.Builder
	outcome := strings.ToLower(strings.TrimPrefix(m.GetOutcome().String(), "MATCH_OUTCOME_"))
	if code := m.GetRejectCode(); code != "" {
		outcome += " (" + code + ")"
	}
	fmt.Fprintf(&b, "%s: %s\n", outcome, m.GetReason())
	for _, c := range m.GetChosen() {
		state := "to be attached"
		if c.GetAttached() {
			state = "attached"
		}
		fmt.Fprintf(&b, "  %s, ID %s, %s\n", c.GetName(), c.GetId(), state)
	}
	if m.GetSavedDownloadBytes()+m.GetSavedUnpackBytes() > 0 {
		fmt.Fprintf(&b, "saves %s of download and %s more of unpacking\n", units.BytesSize(float64(m.GetSavedDownloadBytes())), units.BytesSize(float64(m.GetSavedUnpackBytes())))
	}
	if m.GetNothingMatched() && m.GetCreateIfMissing() {
		b.WriteString("an image snapshot of these images would be made (--create-if-missing does it)\n")
	}
	for _, warning := range m.GetWarnings() {
		fmt.Fprintf(&b, "warning: %s\n", warning)
	}
	if len(m.GetDialects()) > 0 {
		fmt.Fprintf(&b, "annotations read as %s\n", strings.Join(m.GetDialects(), ", "))
	}
	candidates := "candidates"
	if m.GetConsidered() == 1 {
		candidates = "candidate"
	}
	fmt.Fprintf(&b, "\n%d %s, compared by %s\n", m.GetConsidered(), candidates, enumword.Of(m.GetOrder()))
	for i, c := range m.GetCandidates() {
		fmt.Fprintf(&b, "\n%d. %s: %s, %s\n", i+1, c.GetName(), enumword.Of(c.GetVerdict()), c.GetWhy())
		var keys []string
		for _, k := range c.GetScore() {
			keys = append(keys, k.GetName()+" "+keyValue(k))
		}
		if len(keys) > 0 {
			fmt.Fprintf(&b, "   %s\n", strings.Join(keys, ", "))
		}
		for _, img := range c.GetImages() {
			fmt.Fprintf(&b, "   %s: %s\n", img.GetReference(), hasOf(img))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// keyValue formats a key of a candidate: numbers as they are compared, times as people read them.
func keyValue(k *imagesnapshotv1.MatchKey) string {
	if k.GetName() == "created" {
		return time.UnixMicro(k.GetValue()).UTC().Format(time.RFC3339Nano)
	}
	return strconv.FormatInt(k.GetValue(), 10)
}

// hasOf describes what a candidate has of an image.
func hasOf(img *imagesnapshotv1.MatchedImage) string {
	has := "nothing"
	switch img.GetMatchedBy() {
	case imagesnapshotv1.ImageMatch_IMAGE_MATCH_DIGEST:
		has = "the whole image, by digest"
	case imagesnapshotv1.ImageMatch_IMAGE_MATCH_NAME:
		has = "the whole image, by name"
	case imagesnapshotv1.ImageMatch_IMAGE_MATCH_LAYERS:
		has = "some layers"
	case imagesnapshotv1.ImageMatch_IMAGE_MATCH_UNSPECIFIED:
	}
	if img.GetLayers() > 0 && img.GetMatchedBy() != imagesnapshotv1.ImageMatch_IMAGE_MATCH_UNSPECIFIED {
		has += fmt.Sprintf(" (%d of %d layers, the lowest %d without a gap)", img.GetHits(), img.GetLayers(), img.GetRun())
	}
	if d := img.GetMovedTagDigest(); d != "" {
		has += ", under this name it has " + d
	}
	return has
}
