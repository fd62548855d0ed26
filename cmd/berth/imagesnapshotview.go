package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	imagesnapshotv1 "berth.dev/berth/proto/berth/imagesnapshot/v1"
)

// writeImageSnapshot prints one image snapshot in full.
func writeImageSnapshot(w io.Writer, s *imagesnapshotv1.ImageSnapshot) error {
	st, spec := s.GetStatus(), s.GetSpec()
	var b strings.Builder
	line := func(key, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%-15s %s\n", key, value)
		}
	}
	line("name", s.GetName())
	line("id", s.GetId())
	line("version", s.GetResourceVersion())
	line("owner", s.GetOwner())
	line("origin", originWord(s.GetOrigin()))
	line("phase", fmt.Sprintf("%s (%s), %d%%", phaseWord(st.GetPhase()), orDash(st.GetReason()), st.GetProgress()))
	line("message", st.GetMessage())
	line("created", stamp(s.GetCreated()))
	line("updated", stamp(st.GetLastUpdated()))
	line("usable since", stamp(st.GetReady()))
	line("expires", stamp(st.GetExpires()))
	line("deleted", stamp(s.GetDeletionRequested()))
	line("matched", fmt.Sprintf("%s, last %s", count(int(st.GetMatchCount()), "time"), orDash(stamp(st.GetLastMatched()))))
	line("wanted", specLine(spec))
	line("platforms", strings.Join(spec.GetPlatforms(), ", "))
	for _, r := range spec.GetRegistries() {
		line("registry", registryLine(r))
	}
	line("build", buildLine(spec.GetBuild()))
	line("parameters", pairs(spec.GetBuild().GetParameters()))
	line("labels", pairs(s.GetLabels()))
	line("annotations", pairs(s.GetAnnotations()))
	line("token", s.GetClientToken())
	line("driver", st.GetDriver())
	line("volume", st.GetVolumeId())
	for _, v := range st.GetVolumeSnapshots() {
		line("volume snapshot", volumeSnapshotLine(v))
	}
	if st.GetDiskBytes() > 0 {
		line("disk", fmt.Sprintf("%s, %s, index %s", humanSize(st.GetDiskBytes()), count(int(st.GetLayers()), "layer"), st.GetIndexDigest()))
		line("built", fmt.Sprintf("%s, last fetched %s, took over %s from %s", count(int(st.GetBuilds()), "time"), humanSize(st.GetFetchedBytes()), humanSize(st.GetReusedBytes()), orDash(st.GetBaseName())))
	}
	if _, err := io.WriteString(w, b.String()+"\n"); err != nil {
		return err
	}
	if err := writeTable(w, imageRows(s)); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	return writeTable(w, eventRows(st.GetEvents(), false))
}

func imageRows(s *imagesnapshotv1.ImageSnapshot) [][]string {
	rows := [][]string{{"IMAGE", "PLATFORM", "SIZE", "LAYERS", "DIGEST"}}
	for _, img := range s.GetStatus().GetImages() {
		rows = append(rows, []string{img.GetReference(), img.GetPlatform(), humanSize(img.GetSizeBytes()), strconv.Itoa(int(img.GetLayers())), img.GetDigest()})
	}
	if len(rows) == 1 {
		for _, ref := range s.GetSpec().GetImages() {
			rows = append(rows, []string{ref, "-", "-", "-", "-"})
		}
	}
	return rows
}

func specLine(spec *imagesnapshotv1.ImageSnapshotSpec) string {
	size := "size as needed"
	if !spec.GetSizeAsNeeded() {
		size = fmt.Sprintf("%d GiB", spec.GetSizeGib())
	}
	keep := "kept for ever"
	if d := spec.GetRetentionDays(); d > 0 {
		keep = "kept " + count(int(d), "day")
	}
	parts := []string{size, keep}
	if spec.GetReuseLayers() {
		parts = append(parts, "layers reused")
	}
	if spec.GetFlash() {
		parts = append(parts, "flash")
	}
	if spec.GetElimination() == imagesnapshotv1.EliminationStrategy_ELIMINATION_STRATEGY_LRU {
		parts = append(parts, "makes room for others (LRU)")
	}
	if n := spec.GetStandardCopies(); n > 1 {
		parts = append(parts, fmt.Sprintf("%d copies", n))
	}
	if n := spec.GetFlashCopies(); spec.GetFlash() && n > 1 {
		parts = append(parts, fmt.Sprintf("%d flash copies", n))
	}
	return strings.Join(parts, ", ")
}

func registryLine(r *imagesnapshotv1.RegistryAccess) string {
	parts := []string{r.GetServer()}
	if r.GetSecret() != "" {
		parts = append(parts, "secret "+r.GetSecret())
	}
	if r.GetPlainHttp() {
		parts = append(parts, "plain HTTP")
	}
	if r.GetInsecureSkipVerify() {
		parts = append(parts, "certificate not checked")
	}
	return strings.Join(parts, ", ")
}

func buildLine(b *imagesnapshotv1.BuildSpec) string {
	line := "up to " + count(int(b.GetTimeoutMinutes()), "minute")
	if servers := b.GetDnsServers(); len(servers) > 0 {
		line += ", name servers " + strings.Join(servers, ", ")
	}
	return line
}

func volumeSnapshotLine(v *imagesnapshotv1.VolumeSnapshot) string {
	line := fmt.Sprintf("%s (%s), %s", v.GetId(), v.GetName(), humanSize(v.GetSizeBytes()))
	if v.GetFlash() {
		line += ", flash"
	}
	if !v.GetReady() {
		line += ", not complete"
	}
	return line
}
