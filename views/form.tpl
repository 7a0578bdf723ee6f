% # The form of install and index. Hidden inputs carry the frame's fields under their own names;
% # the script reads inputs and data- attributes, nothing is printed inside it.
% import json
% names = [field['name'] for field in operator.FIELDS]
<form id="sms-settings" action="save" method="post" autocomplete="off" data-page="{{page}}"
 data-texts="{{json.dumps(says, ensure_ascii=False)}}">
% for name, value in fields.items():
%   if name not in names:
<input type="hidden" name="{{name}}" value="{{value}}">
%   end
% end
% for field in operator.FIELDS:
%   name, (label, hint) = field['name'], field['ru' if ru else 'en']
%   secret, value = field.get('secret'), get('values', {}).get(name, '')
<label for="{{name}}">{{label}}</label>
<input type="{{'password' if secret else 'text'}}" class="operator" id="{{name}}" name="{{name}}"
 autocomplete="{{'new-password' if secret else 'off'}}" autocapitalize="off" spellcheck="false"
 aria-describedby="{{name}}-hint" placeholder="{{'••••' if secret and value else value}}">
<p class="hint" id="{{name}}-hint">{{hint}}</p>
% end
<button disabled>{{t['save']}}</button>
</form>
<div class="messages">
<p class="error" id="trouble" role="alert"></p>
<p class="done" id="done" role="status"></p>
<noscript><p class="error">{{t['noscript']}}</p></noscript>
</div>
<script>
% include('form.js')
</script>
<script src="{{bx24_js}}"></script>
