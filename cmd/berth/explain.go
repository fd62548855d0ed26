package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	controlv1 "berth.dev/berth/proto/berth/control/v1"
	"berth.dev/berth/proto/enumword"
)

func newExplain() *cobra.Command {
	var (
		daemon      daemonFlags
		r           resolver
		snapshotter string
		asJSON      bool
	)
	cmd := &cobra.Command{
		Use:   "explain IMAGE",
		Short: "Show for each layer of an image which disk serves it, or why none does",
		Long: `explain shows how a pull of an image would find its layers now. For each layer it shows which disk would serve it and by
what it is recognised, or why no disk would; whether containerd already has a snapshot of it, in which case a pull does not
ask berthd; and how berthd answered last.

The image's manifest is looked up on the attached disks, in containerd, and at the registry, in that order. Only the
manifest and the config are read, and nothing is changed.`,
		Example: "  berth explain nginx:1.27\n  berth explain --plain-http registry.example:5000 registry.example:5000/app:v3 --json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return daemon.call(cmd.Context(), func(ctx context.Context, c controlv1.ControlServiceClient) error {
				image, err := r.find(ctx, args[0], c)
				if err != nil {
					return err
				}
				e, err := explain(ctx, c, image, args[0])
				if err != nil {
					return err
				}
				e.Image = args[0]
				if err := e.inContainerd(ctx, &r, snapshotter, image); err != nil {
					e.ContainerdError = err.Error()
				}
				if asJSON {
					return writeJSON(cmd.OutOrStdout(), e)
				}
				return e.print(cmd.OutOrStdout())
			})
		},
	}
	daemon.register(cmd)
	f := cmd.Flags()
	r.register(f)
	f.StringVar(&snapshotter, "snapshotter", "berth", "`name` of the proxy plugin in containerd")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// explanation is what the command prints about an image, as text or as JSON.
type explanation struct {
	Image  string             `json:"image"`
	Source string             `json:"source"`
	Layers []layerExplanation `json:"layers"`
	// LastChoice is the last choice of image snapshots for a pull; null if there was none or it is forgotten.
	LastChoice *lastChoice `json:"last_choice,omitempty"`
	// ContainerdError says why InContainerd is not known.
	ContainerdError string `json:"containerd_error,omitempty"`
}

type layerExplanation struct {
	Number     int    `json:"number"`
	DiffID     string `json:"diff_id"`
	ChainID    string `json:"chain_id"`
	BlobDigest string `json:"blob_digest"`
	SizeBytes  int64  `json:"size_bytes"`
	Hit        bool   `json:"hit"`
	Disk       string `json:"disk,omitempty"`
	DiskLayer  int64  `json:"disk_layer,omitempty"`
	MatchedBy  string `json:"matched_by,omitempty"`
	Reason     string `json:"reason,omitempty"`
	// InContainerd is null if it is not known.
	InContainerd *bool       `json:"in_containerd"`
	Last         *lastAnswer `json:"last,omitempty"`
}

type lastAnswer struct {
	Time time.Time `json:"time"`
	Text string    `json:"text"`
}

func explain(ctx context.Context, c controlv1.ControlServiceClient, image *imageLayers, ref string) (*explanation, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", ref, err)
	}
	req := &controlv1.ExplainLayersRequest{ImageRef: named.String()}
	parent := ""
	for i, diffID := range image.DiffIDs {
		chain := image.chainID(i).String()
		req.Layers = append(req.Layers, &controlv1.LayerName{ChainId: chain, ParentChainId: parent,
			DiffId: diffID.String(), BlobDigest: image.Blobs[i].Digest.String()})
		parent = chain
	}
	resp, err := c.ExplainLayers(ctx, req)
	if err != nil {
		return nil, err
	}
	if len(resp.GetLayers()) != len(req.GetLayers()) {
		return nil, fmt.Errorf("berthd answered for %d of %d layers: is it of another version?", len(resp.GetLayers()), len(req.GetLayers()))
	}
	e := &explanation{Source: image.Source, Layers: []layerExplanation{}, LastChoice: lastChoiceOf(resp.GetLastChoice())}
	for i, a := range resp.GetLayers() {
		l := layerExplanation{
			Number: i, DiffID: req.Layers[i].GetDiffId(), ChainID: req.Layers[i].GetChainId(),
			BlobDigest: req.Layers[i].GetBlobDigest(), SizeBytes: image.Blobs[i].Size,
			Hit: a.GetHit(), Disk: a.GetDisk(), DiskLayer: a.GetLayerNumber(), MatchedBy: enumword.Of(a.GetMatchedBy()), Reason: a.GetReason(),
		}
		if last := a.GetLast(); last != nil {
			l.Last = &lastAnswer{Time: last.GetTime().AsTime(), Text: describeEvent(last)}
		}
		e.Layers = append(e.Layers, l)
	}
	return e, nil
}

// inContainerd notes which layers containerd has snapshots of.
func (e *explanation) inContainerd(ctx context.Context, r *resolver, snapshotter string, image *imageLayers) error {
	has, err := r.snapshots(ctx, snapshotter, image)
	if err != nil {
		return err
	}
	for i := range e.Layers {
		e.Layers[i].InContainerd = &has[i]
	}
	return nil
}

// snapshots asks containerd which layers it has snapshots of, in any of the namespaces.
func (r *resolver) snapshots(ctx context.Context, snapshotter string, image *imageLayers) ([]bool, error) {
	conn, err := r.dial()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	spaces, err := r.namespaces(ctx, conn)
	if err != nil {
		return nil, err
	}
	client := snapshotsapi.NewSnapshotsClient(conn)
	has := make([]bool, len(image.DiffIDs))
	for i := range has {
		for _, ns := range spaces {
			_, err := client.Stat(namespaces.WithNamespace(ctx, ns), &snapshotsapi.StatSnapshotRequest{Snapshotter: snapshotter, Key: image.chainID(i).String()})
			err = answered(err)
			if err != nil && !errdefs.IsNotFound(err) {
				return nil, fmt.Errorf("look for snapshots of %s: %w", snapshotter, err)
			}
			has[i] = has[i] || err == nil
		}
	}
	return has, nil
}

func (e *explanation) print(w io.Writer) error {
	if _, err := fmt.Fprintf(w, "%s, manifest from %s\n\n", e.Image, e.Source); err != nil {
		return err
	}
	var (
		rows         = [][]string{{"#", "DIFF ID", "CHAIN ID", "SIZE", "CONTAINERD", "SERVED BY"}}
		hits         int
		saved, total int64
	)
	for _, l := range e.Layers {
		total += l.SizeBytes
		has := "?"
		if l.InContainerd != nil {
			has = "no"
			if *l.InContainerd {
				has = "yes"
			}
		}
		by := "registry: " + l.Reason
		if l.Hit {
			hits++
			saved += l.SizeBytes
			by = fmt.Sprintf("disk %s, layer %d, by %s", l.Disk, l.DiskLayer, l.MatchedBy)
		}
		rows = append(rows, []string{strconv.Itoa(l.Number), shortDigest(digest.Digest(l.DiffID)), shortDigest(digest.Digest(l.ChainID)), humanSize(l.SizeBytes), has, by})
	}
	if err := writeTable(w, rows); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "\n%d of %s on disks; %s of %s need not be pulled\n", hits, count(len(e.Layers), "layer"), humanSize(saved), humanSize(total)); err != nil {
		return err
	}
	for _, l := range e.Layers {
		if l.Last == nil {
			continue
		}
		if _, err := fmt.Fprintf(w, "layer %d, last asked for %s: %s\n", l.Number, l.Last.Time.Format(time.RFC3339), l.Last.Text); err != nil {
			return err
		}
	}
	if err := e.LastChoice.print(w); err != nil {
		return err
	}
	if e.ContainerdError != "" {
		_, err := fmt.Fprintf(w, "containerd could not be asked: %s\n", e.ContainerdError)
		return err
	}
	return nil
}
