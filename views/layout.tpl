% # Every page: head, the one style sheet, the page itself (base). No static files, no other host.
<!doctype html>
<html lang="{{'ru' if ru else 'en'}}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{title}}</title>
<link rel="icon" href="data:,">
<style>
% include('style.css')
</style>
</head>
<body>
<main>
{{!base}}
</main>
</body>
</html>
