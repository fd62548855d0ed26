package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/distribution/reference"
	"github.com/spf13/cobra"

	controlv1 "berth.dev/berth/proto/berth/control/v1"
)

func newRelease() *cobra.Command {
	var (
		daemon daemonFlags
		yes    bool
	)
	cmd := &cobra.Command{
		Use:   "release NAME",
		Short: "Remove images whose layers are lost with a disk, so that they can be pulled anew",
		Long: `release helps where a disk is lost and its layers cannot be made anew, such as for lack of credentials. NAME is a disk:
then all images that need a lost layer of it are removed from containerd. Or NAME is an image: then it is removed, and
with it the images of the same namespaces that share its lost layers. Whoever pulls them then gets all of their layers
from another disk or the registry.

release says what it removes, and asks first unless --yes is given. It removes no container: those that need lost layers
are named, and while they are there, a pull in their namespace finds these layers lost still.`,
		Example:           "  berth release base\n  berth release --yes registry.example/app:1",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeOne(daemon.diskNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			return daemon.call(cmd.Context(), func(ctx context.Context, c controlv1.ControlServiceClient) error {
				return release(ctx, c, args[0], yes, cmd.InOrStdin(), cmd.OutOrStdout())
			})
		},
	}
	daemon.register(cmd)
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

func release(ctx context.Context, c controlv1.ControlServiceClient, name string, yes bool, in io.Reader, out io.Writer) error {
	req, err := releaseRequest(ctx, c, name)
	if err != nil {
		return err
	}
	if !yes {
		req.DryRun = true
		plan, err := c.ReleaseImages(ctx, req)
		if err != nil {
			return err
		}
		if err := printRelease(out, "would remove ", plan); err != nil {
			return err
		}
		if err := confirm(in, out); err != nil {
			return err
		}
	}
	req.DryRun = false
	done, err := c.ReleaseImages(ctx, req)
	if err != nil {
		return err
	}
	if err := printRelease(out, "removed ", done); err != nil {
		return err
	}
	if len(done.GetRemaining()) > 0 {
		return errors.New("what is named above needs lost layers still: remove it too before you pull these images in its namespace")
	}
	return nil
}

// releaseRequest names a disk if one with lost layers has this name, and otherwise an image.
func releaseRequest(ctx context.Context, c controlv1.ControlServiceClient, name string) (*controlv1.ReleaseImagesRequest, error) {
	lost, err := c.ListLostLayers(ctx, &controlv1.ListLostLayersRequest{Disk: name})
	if err != nil {
		return nil, err
	}
	if len(lost.GetLayers()) > 0 {
		return &controlv1.ReleaseImagesRequest{Disk: name}, nil
	}
	if named, err := reference.ParseDockerRef(name); err == nil {
		name = named.String()
	}
	return &controlv1.ReleaseImagesRequest{Image: name}, nil
}

func printRelease(w io.Writer, verb string, r *controlv1.ReleaseImagesResponse) error {
	for _, u := range r.GetImages() {
		if _, err := fmt.Fprintln(w, verb+userText(u)); err != nil {
			return err
		}
	}
	for _, u := range r.GetRemaining() {
		if _, err := fmt.Fprintln(w, "needs lost layers and stays: "+userText(u)); err != nil {
			return err
		}
	}
	return nil
}

func confirm(in io.Reader, out io.Writer) error {
	if _, err := fmt.Fprint(out, "remove these images? [y/N] "); err != nil {
		return err
	}
	answer, err := bufio.NewReader(in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return errors.New("nothing is removed: answer y, or give --yes")
	}
	return nil
}
