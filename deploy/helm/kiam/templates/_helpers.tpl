{{- define "kiam.fullname" -}}
{{- default (default .Chart.Name .Values.nameOverride) .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "kiam.agent.name" -}}{{ include "kiam.fullname" . }}-agent{{- end -}}
{{- define "kiam.server.name" -}}{{ include "kiam.fullname" . }}-server{{- end -}}

{{- define "kiam.agent.serviceAccount" -}}
{{- default (include "kiam.agent.name" .) .Values.serviceAccounts.agent.name -}}
{{- end -}}
{{- define "kiam.server.serviceAccount" -}}
{{- default (include "kiam.server.name" .) .Values.serviceAccounts.server.name -}}
{{- end -}}

{{- define "kiam.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{- define "kiam.labels" -}}
{{ include "kiam.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end -}}

{{/* Image of a component, else the chart's. */}}
{{- define "kiam.image" -}}
{{- $image := mergeOverwrite (deepCopy .root.Values.image) (.own | default dict) -}}
{{- $tag := default .root.Chart.AppVersion $image.tag -}}
{{- if contains "uswitch/kiam" $image.repository -}}
{{- fail (printf "%s.image.repository is %s, which is kiam v4 and has other flags; leave it out, or name an image of this kiam" .component $image.repository) -}}
{{- end -}}
image: {{ printf "%s:%s" $image.repository $tag | quote }}
imagePullPolicy: {{ $image.pullPolicy }}
{{- end -}}

{{/* extraArgs: {name: value}, or {name: ""} for a flag without a value. */}}
{{- define "kiam.extraArgs" -}}
{{- range $name, $value := . }}
- {{ if or (kindIs "invalid" $value) (eq (toString $value) "") }}{{ printf "--%s" $name | quote }}{{ else }}{{ printf "--%s=%s" $name (toString $value) | quote }}{{ end }}
{{- end }}
{{- end -}}

{{/* Update strategy: kiam v4's chart took a string, the API takes an object. */}}
{{- define "kiam.updateStrategy" -}}
{{- if kindIs "string" . -}}
type: {{ . }}
{{- else -}}
{{- if eq .type "RollingUpdate" -}}
{{ toYaml . }}
{{- else -}}
type: {{ .type }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* TLS Secret of a component. */}}
{{- define "kiam.tlsSecret" -}}
{{- $own := (index .root.Values .component).tlsSecret -}}
{{- if eq .root.Values.tls.mode "secret" -}}
{{- required (printf "tls.mode=secret needs %s.tlsSecret: the Secret's name" .component) $own -}}
{{- else if $own -}}
{{- fail (printf "%s.tlsSecret is %s, and tls.mode is %s; set tls.mode=secret to use it" .component $own .root.Values.tls.mode) -}}
{{- else -}}
{{ include "kiam.fullname" .root }}-{{ .component }}-tls
{{- end -}}
{{- end -}}

{{- define "kiam.tlsArgs" -}}
- --cert=/etc/kiam/tls/{{ .certFileName }}
- --key=/etc/kiam/tls/{{ .keyFileName }}
- --ca=/etc/kiam/tls/{{ .caFileName }}
{{- end -}}

{{- define "kiam.logArgs" -}}
{{- if .jsonOutput -}}
- --json-log
{{ end -}}
- --level={{ .level }}
{{- end -}}

{{/* DNS names of the server's certificate. */}}
{{- define "kiam.server.dnsNames" -}}
{{- $name := include "kiam.server.name" . -}}
{{- list $name (printf "%s.%s" $name .Release.Namespace) (printf "%s.%s.svc" $name .Release.Namespace) (printf "%s.%s.svc.cluster.local" $name .Release.Namespace) "localhost" | toJson -}}
{{- end -}}

{{/* Values of kiam v4's chart that have no effect here, one per line with the reason. */}}
{{- define "kiam.ignored" -}}
{{- $agent := .Values.agent -}}
{{- $server := .Values.server -}}
{{- $host := $agent.host | default dict -}}
{{- $was := list -}}
{{- if hasKey $host "iptables" }}{{ $was = append $was "agent.host.iptables: agent.redirect selects how pods are redirected, by default eBPF" }}{{ end -}}
{{- if hasKey $host "iptablesRemoveOnShutdown" }}{{ $was = append $was "agent.host.iptablesRemoveOnShutdown: nothing is removed on shutdown, so that pods are never exposed; see README.md" }}{{ end -}}
{{- if and $host.interface (eq $agent.redirect "ebpf") }}{{ $was = append $was "agent.host.interface: with agent.redirect=ebpf pods are identified by their cgroup, not by their interface" }}{{ end -}}
{{- if hasKey $agent "deepLivenessProbe" }}{{ $was = append $was "agent.deepLivenessProbe: an agent keeps serving while servers are down; restarting it does not help" }}{{ end -}}
{{- range $name, $component := dict "agent" $agent "server" $server -}}
{{- if hasKey $component "gatewayTimeoutCreation" }}{{ $was = append $was (printf "%s.gatewayTimeoutCreation: agents start without a server and keep trying" $name) }}{{ end -}}
{{- if hasKey $component "keepaliveParams" }}{{ $was = append $was (printf "%s.keepaliveParams: both sides detect a dead connection within 15 s; streams end for age after --grpc-max-connection-age-duration" $name) }}{{ end -}}
{{- if hasKey $component.prometheus "syncInterval" }}{{ $was = append $was (printf "%s.prometheus.syncInterval: metrics are read at each scrape" $name) }}{{ end -}}
{{- if hasKey $component "enabled" }}{{ $was = append $was (printf "%s.enabled: the chart always installs agents and servers" $name) }}{{ end -}}
{{- end -}}
{{- if hasKey $server.deployment "enabled" }}{{ $was = append $was "server.deployment.enabled: the servers are always a Deployment" }}{{ end -}}
{{- if hasKey $server "cache" }}{{ $was = append $was "server.cache.syncInterval: watches report every change" }}{{ end -}}
{{- if hasKey $server "probes" }}{{ $was = append $was "server.probes.serverAddress: probes use /healthz and /readyz" }}{{ end -}}
{{- if hasKey $server "sslCertHostPath" }}{{ $was = append $was "server.sslCertHostPath: the image contains the certificate authorities that AWS uses" }}{{ end -}}
{{- if hasKey .Values "extraArgs" }}{{ $was = append $was "extraArgs: kiam v4's chart did not use it either; use agent.extraArgs and server.extraArgs" }}{{ end -}}
{{- join "\n" $was -}}
{{- end -}}

{{/* Fails on values of kiam v4's chart that would be unsafe to ignore. */}}
{{- define "kiam.refused" -}}
{{- $psp := .Values.psp | default dict -}}
{{- if $psp.create }}{{ fail "psp.create: Kubernetes has no PodSecurityPolicy since 1.25; label the namespace pod-security.kubernetes.io/enforce=privileged" }}{{ end -}}
{{- range $name, $component := dict "agent" .Values.agent "server" .Values.server -}}
{{- if $component.tlsFiles }}{{ if or $component.tlsFiles.key $component.tlsFiles.cert $component.tlsFiles.ca }}{{ fail (printf "%s.tlsFiles: private keys do not belong in values; put the files into a Secret and set tls.mode=secret and %s.tlsSecret" $name $name) }}{{ end }}{{ end -}}
{{- end -}}
{{- if and .Values.server.service.targetPort (ne (int .Values.server.service.targetPort) (int .Values.server.service.port)) }}{{ fail "server.service.targetPort differs from server.service.port: the Service is headless, and agents connect to the pods' own port; set port only" }}{{ end -}}
{{- if and (eq .Values.tls.mode "secret") (or (not .Values.agent.tlsSecret) (not .Values.server.tlsSecret)) }}{{ fail "tls.mode=secret needs agent.tlsSecret and server.tlsSecret" }}{{ end -}}
{{- end -}}

{{/* Security context shared by the containers of the agent's pod. */}}
{{- define "kiam.agent.root" -}}
# Root is needed to hold these capabilities, and for nothing else.
runAsUser: 0
runAsGroup: 0
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
{{- end }}

{{/* Tolerations, plus one for server.nodeTaint: the servers that remove the taint must run before it is removed. */}}
{{- define "kiam.tolerations" -}}
{{- $tolerations := .own | default list -}}
{{- $any := false -}}
{{- range $tolerations -}}
{{- if and (not .key) (eq (default "Equal" .operator) "Exists") (not .effect) -}}{{- $any = true -}}{{- end -}}
{{- end -}}
{{- with .root.Values.server.nodeTaint -}}
{{- if not $any -}}
{{- $taint := splitList ":" . -}}
{{- $effect := "NoSchedule" -}}
{{- if gt (len $taint) 1 -}}{{- $effect = last $taint -}}{{- end -}}
{{- $tolerations = append $tolerations (dict "key" (first $taint) "operator" "Exists" "effect" $effect) -}}
{{- end -}}
{{- end -}}
{{- with $tolerations -}}
tolerations:
{{ toYaml . | indent 2 }}
{{- end -}}
{{- end -}}

{{/* Capabilities of a container of the agent's pod, with agent.extraCapabilities. */}}
{{- define "kiam.agent.capabilities" -}}
add: [{{ concat .own (.root.Values.agent.extraCapabilities | default list) | uniq | join ", " }}]
{{- end -}}
