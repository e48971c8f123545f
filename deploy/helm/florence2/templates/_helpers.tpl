{{- define "florence2.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "florence2.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "florence2.labels" -}}
{{ include "florence2.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "florence2.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "florence2.fullname" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{/* (dict "root" $ "kind" "cpu") */}}
{{- define "florence2.image" -}}
{{- $image := .root.Values.image }}
{{- with $image.registry }}{{ . | trimSuffix "/" }}/{{ end }}florence2-{{ .kind }}:{{ $image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "florence2.claim" -}}
{{ .Values.modelStore.pvc.existingClaim | default (printf "%s-models" (include "florence2.fullname" .)) }}
{{- end }}

{{/* Each checkpoint and precision has its own folder, so files never change under a running server. */}}
{{- define "florence2.path" -}}
{{- if .Values.modelStore.path }}{{ .Values.modelStore.path }}
{{- else if .Values.export.enabled }}{{ regexReplaceAll "[^A-Za-z0-9.]+" (list .Values.export.checkpoint .Values.export.revision (include "florence2.target" .) .Values.export.precision | compact | join "-") "-" }}
{{- else }}model_repository{{ end }}
{{- end }}

{{/* Not a subPath of the volume: Kubernetes would create the folder as root, and the export could not write to it. */}}
{{- define "florence2.repository" -}}
/models/{{ if eq .Values.modelStore.type "pvc" }}{{ include "florence2.path" . }}{{ else }}repository{{ end }}
{{- end }}

{{- define "florence2.target" -}}
{{ if .Values.gpu.count }}gpu{{ else }}cpu{{ end }}
{{- end }}

{{/* Run as the image's user, with only volumes writable. */}}
{{- define "florence2.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "florence2.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Exit code 0 also if the server is too busy to answer in time: restarting a busy server is worse (docs/adr/0004). */}}
{{- define "florence2.probe" -}}
exec:
  command: [florence2, health, --model, {{ .Values.server.name }}_ensemble, --timeout, {{ .Values.probes.timeoutSeconds | quote }}]
timeoutSeconds: {{ add .Values.probes.timeoutSeconds 10 }}
{{- end }}
