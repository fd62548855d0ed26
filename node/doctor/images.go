package doctor

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/image-spec/identity"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth.dev/berth/node/criimages"
)

// shownNames is how many names a result shows.
const shownNames = 5

// checkImages looks for images that containerd has but that cannot start.
func checkImages(ctx context.Context, n Node) []Result {
	const name = "images"
	c, err := client.New(n.ContainerdAddress, client.WithTimeout(answerTimeout))
	if err != nil {
		return []Result{{name, Warn, "not checked: " + err.Error(), "see the check of containerd"}}
	}
	defer c.Close() //nolint:errcheck // a connection that only asks
	spaces, err := c.NamespaceService().List(ctx)
	if err != nil {
		return []Result{{name, Warn, "not checked: " + err.Error(), "see the check of containerd"}}
	}
	var (
		results []Result
		whole   int
	)
	for _, ns := range spaces {
		here := namespaces.WithNamespace(ctx, ns)
		images, err := c.ListImages(here)
		if err != nil {
			results = append(results, Result{name, Warn, fmt.Sprintf("not checked in namespace %s: %v", ns, err), "see the log of containerd"})
			continue
		}
		var lost []string
		for _, img := range images {
			switch gone, err := lostLayers(here, c, n.Snapshotter, img); {
			case err != nil:
				results = append(results, Result{name, Warn, fmt.Sprintf("%s in namespace %s: %v", img.Name(), ns, err), "see the log of berthd"})
			case gone:
				lost = append(lost, img.Name())
			default:
				whole++
			}
		}
		if len(lost) > 0 {
			results = append(results, Result{name, Fail,
				fmt.Sprintf("berthd does not have the layers of %s in namespace %s: they neither start nor are pulled again. Its state was lost or replaced", list(lost), ns),
				fmt.Sprintf("remove these images and their containers, and pull them again: ctr -n %s images rm --sync %s", ns, strings.Join(lost, " "))})
		}
	}
	if len(results) == 0 {
		return []Result{{name, OK, fmt.Sprintf("%d in containerd, none of them without its layers", whole), ""}}
	}
	return results
}

// lostLayers reports whether the snapshotter lacks layers of an image that containerd has noted as unpacked with it.
func lostLayers(ctx context.Context, c *client.Client, snapshotter string, img client.Image) (bool, error) {
	config, err := img.Config(ctx)
	if err != nil {
		return false, ignoreMissing(err) // for another platform, or not fetched
	}
	info, err := c.ContentStore().Info(ctx, config.Digest)
	if err != nil {
		return false, ignoreMissing(err)
	}
	if info.Labels["containerd.io/gc.ref.snapshot."+snapshotter] == "" {
		return false, nil
	}
	diffIDs, err := img.RootFS(ctx)
	if err != nil {
		return false, ignoreMissing(err)
	}
	_, err = c.SnapshotService(snapshotter).Stat(ctx, identity.ChainID(diffIDs).String())
	if errdefs.IsNotFound(err) {
		return true, nil
	}
	return false, err
}

func ignoreMissing(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// checkCRIImages compares the images that containerd keeps for CRI with those that CRI shows. When containerd starts,
// CRI drops images that it does not see unpacked, for example because berthd was not there, and never looks again.
func checkCRIImages(ctx context.Context, n Node) []Result {
	const name = "images of Kubernetes"
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	c, err := client.New(n.ContainerdAddress, client.WithTimeout(answerTimeout))
	if err != nil {
		return []Result{{name, Warn, "not checked: " + err.Error(), "see the check of containerd"}}
	}
	defer c.Close() //nolint:errcheck // only read
	all, err := c.ImageService().List(namespaces.WithNamespace(ctx, criimages.Namespace))
	if err != nil {
		return []Result{{name, Warn, "not checked: " + err.Error(), "see the check of containerd"}}
	}
	conn, err := dial(n.ContainerdAddress)
	if err != nil {
		return []Result{{name, Warn, "not checked: " + err.Error(), "see the check of containerd"}}
	}
	defer conn.Close()
	lost, err := criimages.Lost(ctx, runtimeapi.NewImageServiceClient(conn), all)
	if err != nil {
		return []Result{{name, Warn, err.Error(), "see the log of containerd"}}
	}
	if len(lost) == 0 {
		return []Result{{name, OK, "CRI shows all that containerd keeps for it", ""}}
	}
	var names []string
	for _, img := range lost {
		names = append(names, img.Name)
	}
	return []Result{{name, Fail,
		fmt.Sprintf("CRI does not see %s any more, which containerd has: pods pull them again, or do not start. containerd was started while berthd did not run", list(names)),
		"start berthd: while it runs it brings them back within a minute; see its log if it does not"}}
}

// list returns the first few of many names.
func list(names []string) string {
	if len(names) <= shownNames {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:shownNames], ", "), len(names)-shownNames)
}
